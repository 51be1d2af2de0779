"""Soft-NMS and fusion against the definitions in the papers, one box at a time."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision.ops import batched_nms, box_iou

from pipeline.detection.suppression import nms, soft_nms, weighted_boxes_fusion

box = st.tuples(st.integers(0, 40), st.integers(0, 40), st.integers(5, 40), st.integers(5, 40))
candidates = st.lists(st.tuples(box, st.floats(0.06, 1), st.integers(0, 1)), max_size=12)


def tensors(rows):
    rows = sorted(rows, key=lambda row: -row[1])
    boxes = torch.tensor([[x, y, x + w, y + h] for (x, y, w, h), _, _ in rows], dtype=torch.float32).reshape(-1, 4)
    return boxes, torch.tensor([score for _, score, _ in rows]), torch.tensor([label for *_, label in rows]).long()


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


@given(candidates, st.floats(0.1, 2), st.integers(1, 14))
def test_soft_nms_is_its_definition(rows, sigma, count):
    inputs = tensors(rows)
    boxes, scores, labels = soft_nms(*inputs, sigma, 0.05, count)
    wanted = slow_soft_nms(*inputs, sigma, 0.05, count)
    assert scores.tolist() == pytest.approx(wanted, rel=1e-4)
    assert len(boxes) == len(labels) == len(wanted) <= count


@given(candidates, st.integers(1, 14))
def test_nms_with_early_end_is_torchvisions(rows, count):
    inputs = tensors(rows)
    kept = batched_nms(*inputs, 0.4)[:count]
    boxes, scores, labels = nms(*inputs, 0.4, count)
    assert torch.equal(scores, inputs[1][kept])
    assert torch.equal(labels, inputs[2][kept])
    assert torch.equal(boxes, inputs[0][kept])


def test_fusion_averages_a_cluster_by_its_scores():
    boxes, scores, labels = tensors([((0, 0, 20, 20), 0.9, 0), ((2, 0, 20, 20), 0.3, 0), ((30, 30, 10, 10), 0.5, 0)])
    fused, values, _ = weighted_boxes_fusion(boxes, scores, labels, 0.5, views=1, count=9)
    torch.testing.assert_close(fused[0], torch.tensor([0.5, 0, 20.5, 20]))
    assert values.tolist() == pytest.approx([0.6, 0.5])
    # With two views of the image, a box that only one of them found counts half.
    fused, values, _ = weighted_boxes_fusion(boxes, scores, labels, 0.5, views=2, count=9)
    assert values.tolist() == pytest.approx([0.6, 0.25])
    assert len(weighted_boxes_fusion(boxes, scores, labels, 0.5, views=1, count=1)[0]) == 1
    other = torch.tensor([0, 0, 1])
    assert len(weighted_boxes_fusion(boxes, scores, other, 0.5, views=1, count=9)[0]) == 3


@given(candidates)
def test_fusion_keeps_boxes_within_their_clusters(rows):
    boxes, scores, labels = tensors(rows)
    fused, values, kinds = weighted_boxes_fusion(boxes, scores, labels, 0.5, 1, 20)
    assert len(fused) == len(values) == len(kinds) <= len(rows)
    assert (values.diff() <= 1e-6).all()
    if len(rows):
        assert (fused[:, :2].min(0).values >= boxes[:, :2].min(0).values - 1e-3).all()
        assert (fused[:, 2:].max(0).values <= boxes[:, 2:].max(0).values + 1e-3).all()
        assert set(kinds.tolist()) == set(labels.tolist())
