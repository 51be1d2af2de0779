"""Suppression against torchvision and the definitions in the papers, one box at a time; the forms of CPU and GPU."""

import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torchvision.ops import batched_nms, box_iou

from pipeline.detection import suppression
from pipeline.detection.suppression import ABSENT, Candidates, nms, soft_nms, weighted_boxes_fusion

box = st.tuples(st.integers(0, 40), st.integers(0, 40), st.integers(5, 40), st.integers(5, 40))
candidates = st.lists(st.tuples(box, st.floats(0.06, 1), st.integers(0, 1)), max_size=12)


def tensors(rows):
    rows = sorted(rows, key=lambda row: -row[1])
    boxes = torch.tensor([[x, y, x + w, y + h] for (x, y, w, h), _, _ in rows], dtype=torch.float32).reshape(-1, 4)
    return boxes, torch.tensor([score for _, score, _ in rows]), torch.tensor([label for *_, label in rows]).long()


def batch(*images):
    """Return several images' candidates, filled up with absent rows, one more than the longest has."""
    most = 1 + max(len(boxes) for boxes, _, _ in images)
    found = Candidates(
        torch.zeros(len(images), most, 4),
        torch.full((len(images), most), ABSENT),
        torch.zeros(len(images), most).long(),
    )
    for number, image in enumerate(images):
        for whole, own in zip(found, image, strict=True):
            whole[number, : len(own)] = own
    return found


def image(found, number=0):
    """Return the boxes, scores and labels of one image, without absent rows, which come last."""
    scores = found.scores[number]
    count = int((scores != ABSENT).sum())
    assert (scores[count:] == ABSENT).all()
    return found.boxes[number, :count], scores[:count], found.labels[number, :count]


class Suppression(torch.nn.Module):
    def __init__(self, suppress, count):
        super().__init__()
        self.suppress, self.count = suppress, count

    def forward(self, boxes, scores, labels):
        return self.suppress(Candidates(boxes, scores, labels), self.count)


def slow_soft_nms(boxes, scores, labels, sigma, score_thresh, count):
    left = [[box, score, label] for box, score, label in zip(boxes, scores.tolist(), labels.tolist(), strict=True)]
    found = []
    while left and len(found) < count:
        best = max(range(len(left)), key=lambda place: left[place][1])
        box, score, label = left.pop(best)
        if score <= score_thresh:
            break
        found.append(score)
        for other in left:
            if other[2] == label:
                other[1] *= math.exp(-(box_iou(box[None], other[0][None]).item() ** 2) / sigma)
    return found


@pytest.fixture(params=["cpu", "graph"])
def form(request, monkeypatch):
    """Run in the form that may look at values, and in the form of graphs and GPUs, which may not."""
    if request.param == "graph":
        monkeypatch.setattr(suppression, "can_look_at", lambda _: False)


# No two boxes with whole sides up to 40 have this IoU: it is nobody's rule whether a tie counts as above the threshold.
UNREACHED = 0.4123
any_form = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


@any_form
@given(st.lists(candidates, min_size=1, max_size=3), st.floats(0.1, 2), st.integers(1, 14))
def test_soft_nms_is_its_definition(form, images, sigma, count):
    inputs = [tensors(rows) for rows in images]
    found = soft_nms(batch(*inputs), sigma, 0.05, count)
    for number, own in enumerate(inputs):
        boxes, scores, labels = image(found, number)
        wanted = slow_soft_nms(*own, sigma, 0.05, count)
        assert scores.tolist() == pytest.approx(wanted, rel=1e-4)
        assert len(boxes) == len(labels) == len(wanted) <= count


@any_form
@given(st.lists(candidates, min_size=1, max_size=3), st.integers(1, 14))
def test_nms_is_torchvisions(form, images, count):
    inputs = [tensors(rows) for rows in images]
    found = nms(batch(*inputs), UNREACHED, count)
    for number, own in enumerate(inputs):
        kept = batched_nms(*own, UNREACHED)[:count]
        for values, wanted in zip(image(found, number), own, strict=True):
            assert torch.equal(values, wanted[kept])


@pytest.mark.parametrize("suppress", [lambda rows, n: nms(rows, 0.4, n), lambda rows, n: soft_nms(rows, 0.5, 0.05, n)])
@pytest.mark.parametrize("most_paired", [0, 1500])
def test_an_exported_graph_finds_the_same_and_does_not_grow_with_the_detections(suppress, most_paired, monkeypatch):
    monkeypatch.setattr(suppression, "_MOST_PAIRED", most_paired)
    generator = torch.Generator().manual_seed(3)
    corners = torch.rand(2, 30, 2, generator=generator) * 100
    scores = torch.rand(2, 30, generator=generator).sort(descending=True).values
    rows = batch(*zip(torch.cat([corners, corners + 40], 2), scores, torch.arange(60).view(2, 30) % 2, strict=True))

    sizes = []
    for count in (4, 25):
        module = Suppression(suppress, count)
        program = torch.export.export(module, tuple(rows), dynamic_shapes=({0: torch.export.Dim("batch")},) * 3)
        sizes.append(len(program.graph.nodes))
        for images in (rows, Candidates(*(part[:1] for part in rows))):
            found, wanted = Candidates(*program.module()(*images)), suppress(images, count)
            for number in range(len(images.scores)):
                for own, other in zip(image(found, number), image(wanted, number), strict=True):
                    torch.testing.assert_close(own, other)
    assert sizes[0] == sizes[1]


def test_boxes_without_an_area_do_not_spoil_others(form):
    flat = tensors([((5, 5, 0, 0), 0.9, 0), ((5, 5, 0, 0), 0.8, 0), ((0, 0, 20, 20), 0.7, 0)])
    for found in (nms(batch(flat), 0.4, 3), soft_nms(batch(flat), 0.5, 0.05, 3)):
        assert image(found)[1].tolist() == pytest.approx([0.9, 0.8, 0.7])


def test_fusion_averages_a_cluster_by_its_scores():
    rows = [((0, 0, 20, 20), 0.9, 0), ((2, 0, 20, 20), 0.3, 0), ((30, 30, 10, 10), 0.5, 0)]
    fused, values, _ = image(weighted_boxes_fusion(batch(tensors(rows)), 0.5, views=1))
    torch.testing.assert_close(fused[0], torch.tensor([0.5, 0, 20.5, 20]))
    assert values.tolist() == pytest.approx([0.6, 0.5])
    # With two views of the image, a box that only one of them found counts half.
    fused, values, _ = image(weighted_boxes_fusion(batch(tensors(rows)), 0.5, views=2))
    assert values.tolist() == pytest.approx([0.6, 0.25])
    boxes, scores, _ = tensors(rows)
    other = boxes, scores, torch.tensor([0, 0, 1])
    assert len(image(weighted_boxes_fusion(batch(other), 0.5, views=1))[0]) == 3


@given(st.lists(candidates, min_size=1, max_size=3))
def test_fusion_keeps_boxes_within_their_clusters(images):
    inputs = [tensors(rows) for rows in images]
    found = weighted_boxes_fusion(batch(*inputs), 0.5, 1)
    for number, (boxes, _, labels) in enumerate(inputs):
        fused, values, kinds = image(found, number)
        assert len(fused) == len(values) == len(kinds) <= len(boxes)
        assert (values.diff() <= 1e-6).all()
        if len(boxes):
            assert (fused[:, :2].min(0).values >= boxes[:, :2].min(0).values - 1e-3).all()
            assert (fused[:, 2:].max(0).values <= boxes[:, 2:].max(0).values + 1e-3).all()
            assert set(kinds.tolist()) == set(labels.tolist())
