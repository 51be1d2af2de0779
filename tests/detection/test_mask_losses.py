"""Each loss against its definition, pixel by pixel, and against the set function that it represents."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.detection.mask_losses import (
    MaskSettings,
    box_distances,
    dice_loss,
    distance_weights,
    lovasz_hinge_loss,
    lovasz_softmax_loss,
    mask_loss,
    tversky_loss,
)

TERMS = ("bce", "distance_weighted_bce", "dice", "tversky", "lovasz_hinge", "lovasz_softmax")
pixels = st.lists(st.tuples(st.floats(-80, 80), st.integers(0, 1)), min_size=1, max_size=24)


def tensors(rows):
    logits = torch.tensor([[[logit for logit, _ in rows]]], dtype=torch.float64, requires_grad=True)
    return logits, torch.tensor([[[y for _, y in rows]]], dtype=torch.float64)


def jaccard_loss(wrong, truth):
    """Return 1 - IoU of the prediction that is wrong at the pixels ``wrong``."""
    predicted = [bool(y) != bad for y, bad in zip(truth, wrong, strict=True)]
    union = sum(p or bool(y) for p, y in zip(predicted, truth, strict=True))
    return 0.0 if not union else 1 - sum(p and bool(y) for p, y in zip(predicted, truth, strict=True)) / union


def slow_lovasz(errors, truth):
    """Compute Berman et al., eq. 9: the sum of each error times the loss that its pixel adds to the mispredictions."""
    order = sorted(range(len(errors)), key=lambda place: -errors[place])
    total, wrong, before = 0.0, [False] * len(errors), 0.0
    for place in order:
        wrong[place] = True
        after = jaccard_loss(wrong, truth)
        total += errors[place] * (after - before)
        before = after
    return total


@given(pixels, st.floats(0.05, 0.95))
def test_dice_and_tversky_are_their_formulas(rows, beta):
    logits, masks = tensors(rows)
    p, y = [1 / (1 + math.exp(-logit)) for logit, _ in rows], [y for _, y in rows]
    shared = sum(a * b for a, b in zip(p, y, strict=True))
    wanted = 1 - (2 * shared + 1) / (sum(y) + sum(value**2 for value in p) + 1)
    assert dice_loss(logits, masks).item() == pytest.approx(wanted, abs=1e-9)
    false_alarms = sum((1 - b) * a for a, b in zip(p, y, strict=True))
    misses = sum(b * (1 - a) for a, b in zip(p, y, strict=True))
    wanted = 1 - (shared + 1) / (shared + beta * false_alarms + (1 - beta) * misses + 1)
    assert tversky_loss(logits, masks, beta).item() == pytest.approx(wanted, abs=1e-9)
    (dice_loss(logits, masks) + tversky_loss(logits, masks, beta)).backward()
    assert torch.isfinite(logits.grad).all()


@given(pixels)
def test_lovasz_losses_are_the_lovasz_extension(rows):
    logits, masks = tensors(rows)
    truth = [y for _, y in rows]
    errors = [max(0.0, 1 - logit * (2 * y - 1)) for logit, y in rows]
    assert lovasz_hinge_loss(logits, masks).item() == pytest.approx(slow_lovasz(errors, truth), rel=1e-6, abs=1e-9)
    errors = [abs(y - 1 / (1 + math.exp(-logit))) for logit, y in rows]
    classes = [known for known in (truth, [1 - y for y in truth]) if sum(known)]
    wanted = sum(slow_lovasz(errors, known) for known in classes) / len(classes)
    assert lovasz_softmax_loss(logits, masks).item() == pytest.approx(wanted, rel=1e-6, abs=1e-9)
    (lovasz_hinge_loss(logits, masks) + lovasz_softmax_loss(logits, masks)).backward()
    assert torch.isfinite(logits.grad).all()


@given(st.lists(st.integers(0, 3), min_size=1, max_size=24))
def test_at_certain_predictions_the_overlap_losses_are_one_minus_the_overlap(kinds):
    """The kinds 0 to 3 are true negative, hit, miss and false alarm."""
    predicted, truth = [kind in (1, 3) for kind in kinds], [kind in (1, 2) for kind in kinds]
    logits, masks = tensors([(80.0 if p else -80.0, int(y)) for p, y in zip(predicted, truth, strict=True)])
    union = sum(p or y for p, y in zip(predicted, truth, strict=True))
    iou = kinds.count(1) / union if union else 1.0
    dice = 1 - dice_loss(logits, masks).item()
    assert dice >= iou - 1e-9
    # With logits of -80 and 80, a wrong pixel costs 81 hinge units and a right one 0.
    if iou == 1:
        assert lovasz_hinge_loss(logits, masks).item() == 0
    if union and sum(truth):
        foreground = lovasz_softmax_loss(logits, masks).item()
        assert (foreground == pytest.approx(0, abs=1e-9)) == (iou == 1)


def test_tversky_at_one_half_is_dice_with_unsquared_sums():
    torch.manual_seed(0)
    logits, masks = torch.randn(2, 5, 7, dtype=torch.float64), torch.rand(2, 5, 7).round().double()
    p, y = logits.sigmoid().flatten(1), masks.flatten(1)
    wanted = 1 - ((y * p).sum(1) + 1) / ((y.sum(1) + p.sum(1)) / 2 + 1)
    torch.testing.assert_close(tversky_loss(logits, masks, 0.5), wanted.mean())


def test_distances_and_weights():
    boxes = torch.tensor([[[8.0, 8, 24, 24], [40, 8, 56, 24]]])
    both, one = torch.tensor([[0, 0]]), torch.tensor([[0, -1]])
    distances = box_distances(boxes, both, 8, 8, 8)
    assert distances[0, 0, 1, 1] == 0  # the cell's centre (12, 12) is inside
    assert distances[0, 0, 1, 3] == 4  # (28, 12) is 4 pixels right of it
    assert distances[0, 1, 1, 3] == 12
    assert distances[0, 0, 3, 0].item() == pytest.approx(math.hypot(4, 4))
    weights = distance_weights(distances, w0=10.0, sigma=5.0)
    assert weights[0, 1, 3].item() == pytest.approx(1 + 10 * math.exp(-((4 + 12) ** 2) / 50))
    assert (distance_weights(box_distances(boxes, one, 8, 8, 8), 10.0, 5.0) == 1).all()
    assert (distance_weights(box_distances(boxes[:, :1], one[:, :1], 8, 8, 8), 10.0, 5.0) == 1).all()


@pytest.mark.parametrize("name", TERMS)
@given(st.lists(st.floats(-80, 80), min_size=16, max_size=16), st.integers(0, 2))
def test_every_loss_is_finite_and_zero_at_the_truth(name, values, count):
    boxes = torch.tensor([[[8.0, 8, 16, 24], [16, 8, 32, 16]]])
    labels = torch.tensor([[0 if place < count else -1 for place in range(2)]])
    rules = MaskSettings({name: 2.0}, 0.7, 10.0, 5.0)
    logits = torch.tensor(values).reshape(1, 4, 4).requires_grad_()
    loss = mask_loss(logits, boxes, labels, rules, stride=8)
    loss.backward()
    assert math.isfinite(loss.item())
    assert torch.isfinite(logits.grad).all()
    inside = (box_distances(boxes, labels, 4, 4, 8) == 0).any(1)
    right = mask_loss(torch.where(inside, 80.0, -80.0), boxes, labels, rules, stride=8).item()
    assert right == pytest.approx(0, abs=1e-6)
    wrong = mask_loss(torch.where(inside, -80.0, 80.0), boxes, labels, rules, stride=8).item()
    assert wrong > 0.5
    assert mask_loss(logits.bfloat16(), boxes, labels, rules, stride=8).isfinite()


def test_terms_add_up():
    torch.manual_seed(0)
    boxes, labels = torch.tensor([[[8.0, 8, 16, 24]]]), torch.zeros(1, 1, dtype=torch.long)
    logits = torch.randn(1, 4, 4)

    def value(**terms):
        return mask_loss(logits, boxes, labels, MaskSettings(terms, 0.7, 10.0, 5.0), 8).item()

    assert value(bce=0.5, dice=2.0) == pytest.approx(0.5 * value(bce=1.0) + 2 * value(dice=1.0))
    with pytest.raises(ValueError, match="Invalid mask loss: 'iou'"):
        value(iou=1.0)
