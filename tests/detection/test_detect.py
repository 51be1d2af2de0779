"""Several networks as one: means of outputs, fusion against its authors' implementation, mirror images, refusals."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from ensemble_boxes import weighted_boxes_fusion as reference_fusion
from hypothesis import example, given
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from pipeline.detection.detect import NotFiniteError, detect
from pipeline.detection.ensemble import Ensemble, average, fuse_detections, one_look
from pipeline.detection.retinanet import RetinaNet
from tests.detection.settings import POST_PROCESSING, TINY

SIZE = 128
# With this suppression, no box is removed after the fusion.
FUSED_ONLY = replace(POST_PROCESSING, suppression="weighted_fusion", box_shrink=0.0)
box = st.tuples(st.integers(0, 60), st.integers(0, 60), st.integers(8, 60), st.integers(8, 60))
# Which of two candidates of equal score comes first is nobody's rule, so scores differ.
scores_of_looks = st.lists(st.integers(1, 10_000), min_size=1, max_size=16, unique=True)


@st.composite
def looks(draw):
    scores = draw(scores_of_looks)
    count = draw(st.integers(1, 5))
    rows = [[] for _ in range(count)]
    for score in scores:
        rows[draw(st.integers(0, count - 1))].append((draw(box), score / 10_001, draw(st.integers(0, 1))))
    return rows


def detections(rows):
    boxes = [[x, y, x + width, y + height] for (x, y, width, height), _, _ in rows]
    return {
        "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        "scores": torch.tensor([score for _, score, _ in rows]),
        "labels": torch.tensor([label for *_, label in rows], dtype=torch.long),
    }


# Two clusters whose last coordinates agree but for rounding.
@example(
    [
        [
            ((6, 4, 12, 13), 0.00019998000199980003, 1),
            ((56, 60, 45, 60), 0.00029997000299970003, 1),
            ((0, 0, 20, 44), 0.0776922307769223, 0),
            ((0, 1, 20, 43), 0.019498050194980503, 1),
        ],
        [],
        [],
        [],
        [((11, 0, 18, 44), 9.999000099990002e-05, 1)],
    ],
    0.3,
)
@given(looks(), st.sampled_from([0.3, 0.55, 0.8]))
def test_fusion_is_that_of_its_authors(rows, threshold):
    found = [detections(one) for one in rows]
    (fused,) = fuse_detections([[one] for one in found], threshold, FUSED_ONLY)
    boxes, scores, labels = reference_fusion(
        [(one["boxes"] / SIZE).numpy() for one in found],
        [one["scores"].numpy() for one in found],
        [one["labels"].numpy() for one in found],
        iou_thr=threshold,
    )
    own = np.column_stack([fused["labels"], fused["scores"], fused["boxes"] / SIZE])
    wanted = np.column_stack([labels, scores, boxes])[: POST_PROCESSING.detections_per_img]
    assert len(own) == len(wanted)
    # Clusters of equal score come in any order, so each row is compared with the one closest to it.
    distances = np.abs(own[:, None] - wanted[None]).max(-1)
    pairs = linear_sum_assignment(distances)
    assert distances[pairs].max() <= 2e-4


@pytest.mark.parametrize("suppression", ["nms", "soft_nms", "weighted_fusion"])
def test_nothing_is_found_where_no_look_finds_anything(suppression):
    looks = [[detections([]), detections([])]] * 3
    for found in fuse_detections(looks, 0.5, replace(FUSED_ONLY, suppression=suppression)):
        assert [tuple(part.shape) for part in found.values()] == [(0, 4), (0,), (0,)]


def members(count):
    networks = []
    for seed in range(count):
        torch.manual_seed(seed)
        network = RetinaNet(TINY).eval()
        torch.nn.init.normal_(network.class_head.last.bias, -1.0, 1.0)
        networks.append(network)
    return networks


def same(found, wanted):
    for one, other in zip(found, wanted, strict=True):
        for name in ("boxes", "scores", "labels"):
            torch.testing.assert_close(one[name], other[name], rtol=1e-4, atol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("flip", [False, True])
def test_copies_of_one_network_find_what_it_finds(flip):
    (network,) = members(1)
    images = torch.randint(0, 256, (2, 1, SIZE, SIZE), dtype=torch.uint8)
    rules = replace(POST_PROCESSING, flip=flip)
    alone = detect(network, images, rules)
    assert len(alone[0]["scores"]) > 1
    same(detect(Ensemble([network, network, network], None), images, rules), alone)


@torch.no_grad()
def test_fused_boxes_of_copies_are_those_of_one_look():
    (network,) = members(1)
    images = torch.randint(0, 256, (2, 1, SIZE, SIZE), dtype=torch.uint8)
    alone = detect(network, images, one_look(FUSED_ONLY))
    same(detect(Ensemble([network, network, network], 0.99), images, FUSED_ONLY), alone)


@torch.no_grad()
def test_outputs_are_averaged_as_probabilities_and_offsets_by_their_weight():
    images = torch.randint(0, 256, (2, 1, SIZE, SIZE), dtype=torch.uint8)
    one, other = members(2)
    first, second, both = one(images), other(images), Ensemble([one, other], None)(images)
    weights = first.logits.double().sigmoid(), second.logits.double().sigmoid()
    torch.testing.assert_close(both.logits.double().sigmoid(), sum(weights) / 2, rtol=1e-4, atol=1e-6)
    highest = [weight.amax(2, keepdim=True) for weight in weights]
    wanted = (first.deltas * highest[0] + second.deltas * highest[1]) / sum(highest)
    torch.testing.assert_close(both.deltas.double(), wanted, rtol=1e-4, atol=1e-5)
    with_class = [out._replace(image_class=torch.randn(2, 3)) for out in (first, second)]
    chances = average(with_class).image_class.softmax(1)
    torch.testing.assert_close(chances, sum(out.image_class.softmax(1) for out in with_class) / 2)


def test_what_a_look_names_twice_does_not_count_twice():
    box = torch.tensor([[10.0, 10.0, 60.0, 60.0]])
    rules = replace(POST_PROCESSING, suppression="soft_nms", soft_nms_sigma=0.5, box_shrink=0.0, score_thresh=0.05)
    once = {"boxes": box, "scores": torch.tensor([0.8]), "labels": torch.tensor([0])}
    other = {"boxes": box + 100, "scores": torch.tensor([0.4]), "labels": torch.tensor([0])}
    (found,) = fuse_detections([[once], [other]], 0.5, rules)
    torch.testing.assert_close(found["scores"], torch.tensor([0.4, 0.2]))
    assert one_look(rules).suppression == "nms"
    # Two boxes that are less alike than the fusion asks for go through the suppression that the params name.
    beside = {**once, "boxes": box + 20, "scores": torch.tensor([0.6])}
    (found,) = fuse_detections([[once], [beside]], 0.5, rules)
    overlap = 30 * 30 / (2 * 50 * 50 - 30 * 30)
    torch.testing.assert_close(found["scores"], torch.tensor([0.4, 0.3 * float(np.exp(-(overlap**2) / 0.5))]))
    (found,) = fuse_detections([[once], [beside]], 0.5, replace(rules, suppression="nms", nms_thresh=0.2))
    torch.testing.assert_close(found["scores"], torch.tensor([0.4]))


@torch.no_grad()
@pytest.mark.parametrize("flip", [False, True])
def test_every_look_counts(flip):
    networks = members(2)
    images = torch.randint(0, 256, (1, 1, SIZE, SIZE), dtype=torch.uint8)
    rules = replace(POST_PROCESSING, flip=flip)
    plain = one_look(rules)
    looks = []
    for network in networks:
        looks.append(detect(network, images, plain))
        if flip:
            (mirrored,) = detect(network, images.flip(3), plain)
            boxes = mirrored["boxes"].clone()
            boxes[:, [0, 2]] = SIZE - boxes[:, [2, 0]]
            looks.append([{**mirrored, "boxes": boxes}])
    (wanted,) = fuse_detections(looks, 0.55, rules)
    (found,) = detect(Ensemble(networks, 0.55), images, rules)
    torch.testing.assert_close(found["boxes"], wanted["boxes"])
    torch.testing.assert_close(found["scores"], wanted["scores"])
    # A box that one look of several finds has at most its share of the score.
    assert found["scores"].max() <= max(one[0]["scores"].max() for one in looks)


@torch.no_grad()
@pytest.mark.parametrize("fusion_thresh", [None, 0.9])
def test_the_shrink_comes_once_after_the_fusion(fusion_thresh):
    (network,) = members(1)
    images = torch.randint(0, 256, (1, 1, SIZE, SIZE), dtype=torch.uint8)
    pair = Ensemble([network, network], fusion_thresh)
    (whole,) = detect(pair, images, replace(POST_PROCESSING, box_shrink=0.0))
    (shrunk,) = detect(pair, images, replace(POST_PROCESSING, box_shrink=0.2))
    width = lambda found: found["boxes"][:, 2] - found["boxes"][:, 0]  # noqa: E731
    torch.testing.assert_close(width(shrunk), 0.8 * width(whole))


@torch.no_grad()
@pytest.mark.parametrize("fusion_thresh", [None, 0.5])
@pytest.mark.parametrize("value", ["nan", "-inf"])
def test_a_member_that_is_not_finite_is_refused(fusion_thresh, value):
    networks = members(2)
    networks[1].class_head.last.bias.fill_(float(value))
    with pytest.raises(NotFiniteError) as caught:
        detect(Ensemble(networks, fusion_thresh), torch.zeros(2, 1, SIZE, SIZE, dtype=torch.uint8), POST_PROCESSING)
    assert caught.value.indices == [0, 1]
