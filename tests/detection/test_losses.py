import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F
from torchvision.ops import sigmoid_focal_loss

from pipeline.detection.anchors import encode_boxes, make_anchors
from pipeline.detection.box_losses import box_loss, every_box_loss
from pipeline.detection.losses import (
    DetectionLoss,
    balanced_cross_entropy_loss,
    cross_entropy_loss,
    focal_loss,
    frequency_balanced_cross_entropy_loss,
    hardest_negatives,
    weighted_cross_entropy_loss,
)
from pipeline.detection.matching import IGNORED, _match_by_level, _match_everything, match_anchors

GRID = make_anchors(64, 64, [(1.0, 1.0)])
ANCHORS = GRID.boxes
elements = st.lists(st.tuples(st.floats(-80, 80), st.integers(0, 1)), min_size=1, max_size=20)


def tensors(rows):
    logits = torch.tensor([logit for logit, _ in rows], dtype=torch.float64, requires_grad=True)
    return logits, torch.tensor([target for _, target in rows], dtype=torch.float64)


def test_worked_example():
    logits = torch.tensor([[0.3, 0.4], [0.7, 0.4]])
    targets = F.one_hot(torch.tensor([0, 1]), 2).float()
    loss = focal_loss(logits, targets, 0.25, 2.0)
    torch.testing.assert_close(loss, torch.tensor([[0.025098, 0.245437], [0.369409, 0.020655]]), atol=1e-6, rtol=0)
    assert abs(float(loss.sum() / 2) - 0.330300) < 1e-6


@given(elements, st.floats(0, 1), st.sampled_from([0.0, 0.5, 1.0, 2.0, 5.0]))
def test_focal_loss_is_the_papers_formula(rows, alpha, gamma):
    logits, targets = tensors(rows)
    found = focal_loss(logits, targets, alpha, gamma)
    for value, (logit, target) in zip(found.tolist(), rows, strict=True):
        # The formula in terms of p, with log p computed so that it does not underflow.
        p_t = 1 / (1 + math.exp(-logit if target else logit))
        log_p_t = -math.log1p(math.exp(-logit if target else logit))
        wanted = -(alpha if target else 1 - alpha) * (1 - p_t) ** gamma * log_p_t
        assert value == pytest.approx(wanted, rel=1e-6, abs=1e-12)
    found.sum().backward()
    assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0, 5.0])
def test_gradients_are_those_of_the_values(gamma):
    torch.manual_seed(0)
    logits = (3 * torch.randn(20, dtype=torch.float64)).requires_grad_()
    targets = torch.arange(20) % 2
    assert torch.autograd.gradcheck(lambda values: focal_loss(values, targets, 0.3, gamma), logits)
    assert torch.autograd.gradcheck(lambda values: weighted_cross_entropy_loss(values, targets, 3.0), logits)


@given(elements.filter(lambda rows: all(abs(logit) < 20 for logit, _ in rows)))
def test_focal_loss_is_torchvisions_in_value_and_gradient(rows):
    logits, targets = tensors(rows)
    other = logits.detach().clone().requires_grad_()
    ours, theirs = focal_loss(logits, targets, 0.25, 2.0), sigmoid_focal_loss(other, targets, 0.25, 2.0)
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-10)
    ours.sum().backward()
    theirs.sum().backward()
    torch.testing.assert_close(logits.grad, other.grad, rtol=1e-5, atol=1e-8)


@given(elements)
def test_identities(rows):
    logits, targets = tensors(rows)
    entropy = cross_entropy_loss(logits, targets)
    torch.testing.assert_close(entropy, F.binary_cross_entropy_with_logits(logits, targets, reduction="none"))
    torch.testing.assert_close(focal_loss(logits, targets, 0.5, 0.0), entropy / 2)
    torch.testing.assert_close(
        balanced_cross_entropy_loss(logits, targets, 0.3), torch.where(targets > 0, 0.3, 0.7) * entropy
    )
    torch.testing.assert_close(
        weighted_cross_entropy_loss(logits, targets, 4.0), torch.where(targets > 0, 4.0, 1.0) * entropy
    )
    share = float((targets == 0).double().mean())
    beta = min(max(share, 1e-6), 1 - 1e-6)
    torch.testing.assert_close(
        frequency_balanced_cross_entropy_loss(logits, targets, torch.ones_like(targets, dtype=torch.bool)),
        torch.where(targets > 0, beta, 1 - beta) * entropy,
        rtol=1e-6,
        atol=1e-7,
    )


@pytest.mark.parametrize("kind", ["smooth_l1", "l1", "giou", "ciou"])
def test_box_losses(kind):
    anchors = ANCHORS[:5].double()
    boxes = (anchors + torch.tensor([3.0, -2, 9, 4]))[None]
    exact = encode_boxes(boxes, anchors)
    assert float(box_loss(kind, exact, boxes, anchors, 1 / 9).abs().max()) < 1e-6
    deltas = (exact + 0.3).requires_grad_()
    loss = box_loss(kind, deltas, boxes, anchors, 1 / 9)
    assert loss.shape == (1, 5)
    assert bool((loss > 0).all())
    loss.sum().backward()
    assert torch.isfinite(deltas.grad).all()
    if kind == "smooth_l1":
        torch.testing.assert_close(loss, torch.full((1, 5), 4 * (0.3 - 1 / 18), dtype=torch.float64))


def test_smooth_l1_is_continuous_at_beta():
    anchors = ANCHORS[:1].double()
    beta = 1 / 9
    values = [
        float(box_loss("smooth_l1", torch.full((1, 1, 4), d, dtype=torch.float64), anchors[None], anchors, beta))
        for d in (beta - 1e-9, beta + 1e-9)
    ]
    assert values[0] == pytest.approx(values[1], abs=1e-7)
    assert values[0] == pytest.approx(4 * 0.5 * beta, abs=1e-7)


def batch(boxes_per_image):
    """Return random logits and deltas, boxes close to some anchors, and the labels of the boxes."""
    most = max(1, *boxes_per_image)
    boxes = torch.zeros(len(boxes_per_image), most, 4)
    boxes[..., 2:] = 1
    labels = torch.full((len(boxes_per_image), most), -1)
    for row, count in enumerate(boxes_per_image):
        boxes[row, :count] = ANCHORS[torch.arange(count) * 17 + 3] + 1
        labels[row, :count] = 0
    shape = (len(boxes_per_image), len(ANCHORS))
    logits = torch.randn(*shape, 1, requires_grad=True)
    return logits, torch.randn(*shape, 4, requires_grad=True), boxes, labels


def test_equals_torchvisions_retinanet_loss(loss_settings):
    """Compare the paper's normaliser, image by image, with torchvision's own head classes."""
    from torchvision.models.detection.retinanet import RetinaNetClassificationHead, RetinaNetRegressionHead

    logits, deltas, boxes, labels = batch([2, 0, 1])
    settings = replace(loss_settings, normalizer="per_image", box="l1")
    ours = DetectionLoss(settings)(logits, deltas, GRID, boxes, labels)
    from torchvision.models.detection._utils import Matcher
    from torchvision.ops import box_iou

    matcher = Matcher(0.5, 0.4, allow_low_quality_matches=True)
    targets = [
        {"boxes": box[label >= 0], "labels": label[label >= 0]} for box, label in zip(boxes, labels, strict=True)
    ]
    matched = [
        matcher(box_iou(target["boxes"], ANCHORS)) if len(target["boxes"]) else torch.full((len(ANCHORS),), -1)
        for target in targets
    ]
    heads = RetinaNetClassificationHead(8, 1, 1), RetinaNetRegressionHead(8, 1)
    wanted = heads[0].compute_loss(targets, {"cls_logits": logits}, matched)
    torch.testing.assert_close(ours.classification, wanted, rtol=1e-5, atol=1e-6)
    wanted = heads[1].compute_loss(targets, {"bbox_regression": deltas}, [ANCHORS] * 3, matched)
    torch.testing.assert_close(ours.box, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("normalizer", ["per_image", "batch", "ema"])
@pytest.mark.parametrize(
    "classification",
    [
        "focal",
        "cross_entropy",
        "balanced_cross_entropy",
        "weighted_cross_entropy",
        "frequency_balanced_cross_entropy",
    ],
)
@pytest.mark.parametrize("counts", [[0, 0], [1, 0], [4, 2]])
def test_every_setting_is_finite_with_and_without_boxes(loss_settings, normalizer, classification, counts):
    logits, deltas, boxes, labels = batch(counts)
    loss = DetectionLoss(replace(loss_settings, normalizer=normalizer, classification=classification))
    with torch.autocast("cpu", torch.bfloat16):
        losses = loss(logits.bfloat16() * 40, deltas.bfloat16(), GRID, boxes, labels)
    (losses.classification + losses.box).backward()
    assert losses.classification.dtype == torch.float32
    assert losses.classification.item() > 0
    assert (losses.box.item() > 0) == any(counts)
    assert torch.isfinite(logits.grad).all()
    assert torch.isfinite(deltas.grad).all()


def test_alpha_gamma_and_beta_reach_the_loss(loss_settings):
    logits, deltas, boxes, labels = batch([2, 1])
    values = {
        DetectionLoss(replace(loss_settings, **change))(logits, deltas, GRID, boxes, labels).classification.item()
        for change in (
            {},
            {"alpha": 0.5},
            {"gamma": 1.0},
            {"classification": "weighted_cross_entropy"},
            {"classification": "weighted_cross_entropy", "beta": 5.0},
        )
    }
    assert len(values) == 5


def test_ignored_anchors_add_nothing(loss_settings):
    logits, deltas, boxes, labels = batch([1])
    boxes[0, 0] = ANCHORS[20] + torch.tensor([0.0, 0, 0, 32])
    settings = replace(loss_settings, low_quality_matches=False, fg_iou_thresh=0.9, bg_iou_thresh=0.01)
    loss = DetectionLoss(settings)(logits, deltas, GRID, boxes, labels)
    loss.classification.backward()

    ignored = match_anchors(GRID, boxes, labels, 0.9, 0.01, False)[0] == IGNORED
    assert int(ignored.sum()) > 0
    assert float(logits.grad[0, ignored].abs().max()) == 0
    assert float(logits.grad[0, ~ignored].abs().min()) > 0


def test_ema_normaliser_follows_detectron2(loss_settings):
    loss = DetectionLoss(replace(loss_settings, normalizer="ema"))
    _, _, boxes, labels = batch([2, 1])
    logits, deltas = torch.zeros(2, len(ANCHORS), 1), torch.zeros(2, len(ANCHORS), 4)
    positives = float(loss(logits, deltas, GRID, boxes, labels).positives) * 2
    assert float(loss.running_positives) == pytest.approx(0.9 * 100 + 0.1 * positives)
    loss.eval()
    loss(logits, deltas, GRID, boxes, labels)
    assert float(loss.running_positives) == pytest.approx(0.9 * 100 + 0.1 * positives)


@pytest.mark.parametrize("kind", ["smooth_l1", "l1", "giou", "ciou"])
@pytest.mark.parametrize("classes", [1, 3])
def test_every_form_gives_the_same_numbers(loss_settings, kind, classes, monkeypatch):
    """Compare eager and compiled code that picks positives (as on a CPU) or computes every anchor (as on a GPU)."""
    loss = DetectionLoss(replace(loss_settings, box=kind))
    torch.manual_seed(0)
    logits, deltas = torch.randn(3, len(ANCHORS), classes), torch.randn(3, len(ANCHORS), 4) / 5
    boxes, labels = torch.ones(3, 2, 4), torch.full((3, 2), -1)
    boxes[0], labels[0] = torch.tensor([[4.0, 4, 40, 30], [20, 20, 60, 60]]), torch.tensor([0, classes - 1])
    boxes[2, 0], labels[2, 0] = torch.tensor([10.0, 12, 30, 50]), 0

    def run(function):
        inputs = logits.clone().requires_grad_(), deltas.clone().requires_grad_()
        found = function(*inputs, GRID, boxes, labels)
        (found.classification + 2 * found.box).backward()
        return (*found, inputs[0].grad, inputs[1].grad)

    results = [run(loss)]
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        results.append(run(torch.compile(loss, fullgraph=True, backend="aot_eager")))
    monkeypatch.setattr("pipeline.detection.losses.positive_box_loss", every_box_loss)
    monkeypatch.setattr(
        "pipeline.detection.losses.match_anchors", lambda anchors, *rest: _match_everything(anchors.sides, *rest)
    )
    torch._dynamo.reset()
    results += [run(loss), run(torch.compile(loss, fullgraph=True, backend="aot_eager"))]
    for other in results[1:]:
        for one, same in zip(results[0], other, strict=True):
            torch.testing.assert_close(one, same, rtol=1e-5, atol=1e-7)
    assert results[0][4].abs().sum() > 0


def test_the_operator_of_matching_is_a_good_citizen():
    """Run torch's own check of an operator: its schema, its shapes without data, its compilation."""
    boxes, labels = torch.tensor([[[4.0, 4, 40, 30]], [[10.0, 12, 30, 50]]]), torch.zeros(2, 1, dtype=torch.int64)
    torch.library.opcheck(_match_by_level, (list(GRID.levels), ANCHORS, boxes, labels, 0.5, 0.4, True))


@given(st.lists(st.tuples(st.floats(0, 9), st.booleans()), min_size=1, max_size=20), st.floats(0, 12))
def test_hardest_negatives(rows, count):
    losses = torch.tensor([loss for loss, _ in rows])
    negative = torch.tensor([known for _, known in rows])
    chosen = hardest_negatives(losses, negative, torch.tensor(count))
    assert not (chosen & ~negative).any()
    wanted = min(int(negative.sum()), max(1, round(count)))
    assert int(chosen.sum()) >= wanted
    if 0 < wanted < int(negative.sum()):
        left = losses[negative & ~chosen]
        assert not len(left) or losses[chosen].min() > left.max()
        cutoff = sorted(losses[negative].tolist())[-wanted]
        assert int(chosen.sum()) == int((losses[negative] >= cutoff).sum())


def test_ohem_counts_three_negatives_for_each_positive(loss_settings):
    torch.manual_seed(0)
    settings = replace(loss_settings, classification="cross_entropy", sampling="ohem", ohem_ratio=3.0)
    boxes, labels = ANCHORS[None, 20:21] + 1, torch.zeros(1, 1, dtype=torch.long)
    logits = torch.randn(1, len(ANCHORS), 1, requires_grad=True)
    found = DetectionLoss(settings)(logits, torch.zeros(1, len(ANCHORS), 4), GRID, boxes, labels)
    found.classification.backward()
    matched = match_anchors(GRID, boxes, labels, 0.5, 0.4, True)[0]
    used = logits.grad[0, :, 0] != 0
    positives = int((matched >= 0).sum())
    assert used[matched >= 0].all()
    assert int(used.sum()) == 4 * positives
    assert not used[matched == IGNORED].any()
    negatives = matched == -1
    assert logits[0, negatives & used, 0].min() > logits[0, negatives & ~used, 0].max()


@pytest.mark.parametrize("kind", ["focal", "frequency_balanced_cross_entropy"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_all_anchors_ignored_and_all_positive(loss_settings, kind, dtype):
    """One box over the whole image overlaps every anchor: the thresholds make all of them ignored or positive."""
    box, label = torch.tensor([[[-64.0, -64, 128, 128]]]), torch.zeros(1, 1, dtype=torch.int64)
    for foreground, positives in ((0.999, 0), (1e-6, len(ANCHORS))):
        settings = replace(
            loss_settings, classification=kind, low_quality_matches=False, fg_iou_thresh=foreground, bg_iou_thresh=1e-6
        )
        logits = torch.randn(1, len(ANCHORS), 1).mul(20).to(dtype).requires_grad_()
        deltas = torch.randn(1, len(ANCHORS), 4).to(dtype).requires_grad_()
        loss = DetectionLoss(settings)(logits, deltas, GRID, box, label)
        (loss.classification + loss.box).backward()
        assert float(loss.positives) == positives
        assert torch.isfinite(loss.classification)
        assert torch.isfinite(logits.grad).all()
        assert torch.isfinite(deltas.grad).all()
        if positives == 0:
            assert loss.classification.item() == loss.box.item() == logits.grad.abs().max().item() == 0
        elif kind == "focal":
            wanted = focal_loss(logits.detach().float(), torch.ones_like(logits), 0.25, 2.0).mean()
            assert loss.classification.item() == pytest.approx(wanted.item(), rel=1e-4)
