"""Several networks as one: fusion against its authors' implementation, looks in the mirror, and refusals."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from ensemble_boxes import weighted_boxes_fusion as reference_fusion
from hypothesis import example, given
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from pipeline.detection.detect import Ensemble, NotFiniteError, detect, fuse
from pipeline.detection.retinanet import RetinaNet
from tests.detection.settings import POST_PROCESSING, TINY

SIZE = 128
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
    (fused,) = fuse([[one] for one in found], threshold, replace(POST_PROCESSING, box_shrink=0.0))
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


def members(count):
    networks = []
    for seed in range(count):
        torch.manual_seed(seed)
        network = RetinaNet(TINY).eval()
        torch.nn.init.normal_(network.class_head.last.bias, -1.0, 1.0)
        networks.append(network)
    return networks


@torch.no_grad()
def test_copies_of_one_network_find_what_it_finds():
    (network,) = members(1)
    images = torch.randint(0, 256, (2, 1, SIZE, SIZE), dtype=torch.uint8)
    alone = detect(network, images, POST_PROCESSING)
    together = detect(Ensemble([network, network, network], 0.99), images, POST_PROCESSING)
    assert len(alone[0]["scores"]) > 1
    for one, other in zip(alone, together, strict=True):
        for name in ("boxes", "scores", "labels"):
            torch.testing.assert_close(one[name], other[name], rtol=1e-4, atol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("flip", [False, True])
def test_every_look_counts(flip):
    networks = members(2)
    images = torch.randint(0, 256, (1, 1, SIZE, SIZE), dtype=torch.uint8)
    rules = replace(POST_PROCESSING, flip=flip)
    plain = replace(POST_PROCESSING, flip=False)
    looks = []
    for network in networks:
        looks.append(detect(network, images, plain))
        if flip:
            (mirrored,) = detect(network, images.flip(3), plain)
            boxes = mirrored["boxes"].clone()
            boxes[:, [0, 2]] = SIZE - boxes[:, [2, 0]]
            looks.append([{**mirrored, "boxes": boxes}])
    (wanted,) = fuse(looks, 0.55, plain)
    (found,) = detect(Ensemble(networks, 0.55), images, rules)
    torch.testing.assert_close(found["boxes"], wanted["boxes"])
    torch.testing.assert_close(found["scores"], wanted["scores"])
    # A box that one look of several finds has at most its share of the score.
    assert found["scores"].max() <= max(one[0]["scores"].max() for one in looks)


@torch.no_grad()
def test_the_shrink_comes_once_after_the_fusion():
    (network,) = members(1)
    images = torch.randint(0, 256, (1, 1, SIZE, SIZE), dtype=torch.uint8)
    pair = Ensemble([network, network], 0.9)
    (whole,) = detect(pair, images, replace(POST_PROCESSING, box_shrink=0.0))
    (shrunk,) = detect(pair, images, replace(POST_PROCESSING, box_shrink=0.2))
    width = lambda found: found["boxes"][:, 2] - found["boxes"][:, 0]  # noqa: E731
    torch.testing.assert_close(width(shrunk), 0.8 * width(whole))


@torch.no_grad()
def test_a_member_that_is_not_finite_is_refused():
    networks = members(2)
    networks[1].class_head.last.bias.fill_(float("nan"))
    with pytest.raises(NotFiniteError) as caught:
        detect(Ensemble(networks, 0.5), torch.zeros(2, 1, SIZE, SIZE, dtype=torch.uint8), POST_PROCESSING)
    assert caught.value.indices == [0, 1]
