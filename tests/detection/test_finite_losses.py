"""Losses and their gradients are finite for all finite outputs of a network."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torchvision.ops import complete_box_iou_loss, generalized_box_iou_loss

from pipeline.detection.anchors import decode_boxes, encode_boxes, make_anchors
from pipeline.detection.bounded import LOGIT_LIMIT, bounded
from pipeline.detection.box_losses import box_loss, every_box_loss, positive_box_loss
from pipeline.detection.extra_losses import ExtraLosses
from pipeline.detection.losses import DetectionLoss
from pipeline.detection.mask_losses import MaskSettings
from pipeline.detection.retinanet import HeadOutputs
from tests.detection.settings import LOSS

KINDS = ("smooth_l1", "l1", "giou", "ciou")
LARGEST = float(np.finfo(np.float32).max)
SMALLEST = float(np.nextafter(np.float32(0), np.float32(1)))
ODD = [0.0, -0.0, 1e38, -1e38, LARGEST, -LARGEST, SMALLEST, -SMALLEST, 4.1352, 88.8, -88.8, -104.0, 1e4, -1e4, 1e20]
numbers = st.floats(width=32, allow_nan=False, allow_infinity=False) | st.sampled_from(ODD) | st.floats(-8, 8, width=32)
offsets = st.lists(st.tuples(numbers, numbers, numbers, numbers), min_size=1, max_size=8)
sides = st.sampled_from([0.0, SMALLEST, 1e-6, 0.5, 1.0, 16.0, 200.0, 4096.0])
places = st.sampled_from([-500.0, 0.0, 3.25, 1000.0, 4096.0])
rectangles = st.tuples(places, places, sides, sides).map(lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3]))
extremes = [tuple(row) for row in np.array(np.meshgrid(*[ODD[:6]] * 4)).reshape(4, -1).T.tolist()]
ANCHOR, BOX, NOTHING = (100.0, 100.0, 132.0, 132.0), (90.0, 80.0, 130.0, 170.0), (50.0, 50.0, 50.0, 50.0)


def is_finite(loss, values):
    loss.sum().backward()
    assert torch.isfinite(loss).all()
    assert torch.isfinite(loss.sum())
    assert torch.isfinite(values.grad).all()
    assert torch.isfinite(values.grad.float().square().sum())  # the norm that gradient clipping uses


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=300)
@given(offsets, rectangles, rectangles)
@example(extremes, ANCHOR, BOX)
@example(extremes, NOTHING, BOX)
@example(extremes, ANCHOR, NOTHING)
@example(extremes, NOTHING, NOTHING)
def test_box_losses(kind, rows, anchor, box):
    deltas = torch.tensor(rows, dtype=torch.float32, requires_grad=True)
    anchors, boxes = (torch.tensor([one]).expand(len(rows), 4) for one in (anchor, box))
    is_finite(box_loss(kind, deltas, boxes, anchors, 1 / 9), deltas)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_box_losses_of_halves_under_autocast(kind, dtype):
    largest = torch.finfo(dtype).max
    rows = torch.tensor(extremes).clamp(-largest, largest)
    deltas = rows.to(dtype).requires_grad_()
    anchors, boxes = (torch.tensor([one]).expand(len(rows), 4) for one in (ANCHOR, BOX))
    with torch.autocast("cpu", torch.bfloat16):
        loss = box_loss(kind, deltas, boxes, anchors, 1 / 9)
    assert loss.dtype == torch.float32
    loss.sum().backward()
    assert torch.isfinite(loss).all()
    assert torch.isfinite(deltas.grad).all()


@given(offsets, rectangles)
def test_decoded_boxes(rows, anchor):
    deltas = torch.tensor(rows, dtype=torch.float32, requires_grad=True)
    decoded = decode_boxes(deltas, torch.tensor([anchor]))
    assert torch.isfinite(decoded).all()
    decoded.sum().backward()
    assert torch.isfinite(deltas.grad).all()


@given(rectangles, rectangles)
def test_encoded_boxes(box, anchor):
    assert torch.isfinite(encode_boxes(torch.tensor([box]), torch.tensor([anchor]))).all()


def ordinary(count):
    generator = torch.Generator().manual_seed(3)
    anchors = make_anchors(256, 256, [(1.0, 1.0), (1.26, 0.75)]).boxes
    anchors = anchors[torch.randint(len(anchors), (count,), generator=generator)]
    deltas = torch.randn(count, 4, generator=generator) * torch.tensor([0.5, 0.5, 0.6, 0.6])
    boxes = decode_boxes(torch.randn(count, 4, generator=generator) * 0.4, anchors)
    return deltas, boxes, anchors


@pytest.mark.parametrize(("kind", "oracle"), [("giou", generalized_box_iou_loss), ("ciou", complete_box_iou_loss)])
def test_ordinary_values_and_gradients_are_torchvisions(kind, oracle):
    deltas, boxes, anchors = ordinary(2000)
    mine, theirs = deltas.clone().requires_grad_(), deltas.clone().requires_grad_()
    found, wanted = box_loss(kind, mine, boxes, anchors, 0.1), oracle(decode_boxes(theirs, anchors), boxes)
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-6)
    found.sum().backward()
    wanted.sum().backward()
    torch.testing.assert_close(mine.grad, theirs.grad, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", ["smooth_l1", "l1"])
def test_ordinary_values_are_bit_for_bit_those_of_the_formula(kind):
    deltas, boxes, anchors = ordinary(2000)
    distance = (deltas - encode_boxes(boxes, anchors)).abs()
    if kind == "smooth_l1":
        wanted = torch.nn.functional.smooth_l1_loss(deltas, encode_boxes(boxes, anchors), reduction="none", beta=1 / 9)
        wanted = wanted.sum(-1)
    else:
        wanted = distance.sum(-1)
    assert torch.equal(box_loss(kind, deltas, boxes, anchors, 1 / 9), wanted)


def test_an_offset_beyond_the_limit_still_learns():
    deltas = torch.tensor([[1e30, -1e30, 0.0, 0.0]], requires_grad=True)
    box_loss("smooth_l1", deltas, torch.tensor([BOX]), torch.tensor([ANCHOR]), 1 / 9).sum().backward()
    assert deltas.grad[0, :2].tolist() == [1.0, -1.0]
    values = torch.tensor([-3e38, -1.5, 0.0, 7.25, 3e38], requires_grad=True)
    assert bounded(values, 100.0).tolist() == [-100.0, -1.5, 0.0, 7.25, 100.0]
    bounded(values, 100.0).sum().backward()
    assert values.grad.tolist() == [1.0] * 5


CLASS_LOSSES = ("focal", "cross_entropy", "balanced_cross_entropy", "weighted_cross_entropy",
                "frequency_balanced_cross_entropy", "quality_focal", "varifocal")  # fmt: skip


@pytest.mark.parametrize("normalizer", ["per_image", "batch", "ema"])
@pytest.mark.parametrize("sampling", ["all", "ohem"])
@pytest.mark.parametrize("kind", CLASS_LOSSES)
@settings(max_examples=10)
@given(
    st.lists(numbers, min_size=8, max_size=8),
    st.sampled_from([0.0, 0.5, 2.0, 5.0]),
    st.sampled_from(KINDS),
    st.sampled_from(["iou", "atss"]),
)
def test_the_whole_detection_loss(kind, sampling, normalizer, rows, gamma, box, matching):
    anchors = make_anchors(128, 128, [(1.0, 1.0)])
    count = len(anchors.boxes)
    values = torch.tensor(rows, dtype=torch.float32).repeat(count)[: 2 * count].reshape(2, count, 1).requires_grad_()
    deltas = torch.tensor(rows, dtype=torch.float32).repeat(count)[: 8 * count].reshape(2, count, 4).requires_grad_()
    boxes = torch.tensor([[[20.0, 20.0, 60.0, 80.0]], [[0.0, 0.0, 1.0, 1.0]]])
    own = {"classification": kind, "gamma": gamma, "normalizer": normalizer, "box": box, "sampling": sampling}
    losses = DetectionLoss(replace(LOSS, beta=3.0, matching=matching, **own))(
        values, deltas, anchors, boxes, torch.tensor([[0], [-1]])
    )
    is_finite(losses.classification + losses.box, values)
    assert torch.isfinite(deltas.grad).all()


@settings(max_examples=30)
@given(st.lists(numbers, min_size=4, max_size=4), st.sampled_from(KINDS))
def test_both_ways_to_the_box_loss(rows, kind):
    anchors = make_anchors(128, 128, [(1.0, 1.0)]).boxes
    matched = torch.full((1, len(anchors)), -1)
    matched[0, 5:40] = 0
    for way in (positive_box_loss, every_box_loss):
        deltas = torch.tensor(rows, dtype=torch.float32).expand(1, len(anchors), 4).clone().requires_grad_()
        is_finite(way(deltas, torch.tensor([[BOX]]), anchors, matched, kind, 1 / 9), deltas)


TERMS = ("bce", "distance_weighted_bce", "dice", "tversky", "lovasz_hinge", "lovasz_softmax")


@pytest.mark.parametrize("name", TERMS)
@settings(max_examples=50)
@given(st.lists(numbers, min_size=64, max_size=64), st.integers(0, 2))
@example(ODD * 4 + ODD[:4], 2)
@example([LARGEST] * 64, 0)
@example([-LARGEST] * 64, 2)
def test_losses_of_the_other_heads(name, rows, boxes):
    logits = torch.tensor(rows, dtype=torch.float32).reshape(1, 8, 8).requires_grad_()
    classes = torch.tensor(rows[:3], dtype=torch.float32).reshape(1, 3).requires_grad_()
    table = torch.tensor([[[0.0, 0.0, 30.0, 30.0], [20.0, 0.0, 64.0, 64.0]]])
    labels = torch.tensor([[0 if place < boxes else -1 for place in range(2)]])
    outputs = HeadOutputs(torch.zeros(1), torch.zeros(1), logits, classes)
    losses = ExtraLosses(MaskSettings({name: 1.0}, 0.5, 10.0, 5.0), 1.0)(outputs, table, labels, torch.tensor([1]))
    is_finite(losses["image_class"], classes)
    is_finite(losses["mask"], logits)


def test_ordinary_logits_are_left_alone():
    values = torch.randn(1000, generator=torch.Generator().manual_seed(0)) * 50
    assert torch.equal(bounded(values, LOGIT_LIMIT), values)
