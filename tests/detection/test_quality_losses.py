import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.detection.losses import cross_entropy_loss, focal_loss
from pipeline.detection.quality_losses import quality_focal_loss, varifocal_loss

GAMMAS = [0.0, 0.5, 1.0, 2.0, 5.0]
quality = st.one_of(st.sampled_from([0.0, 1.0]), st.floats(0, 1))
elements = st.lists(st.tuples(st.floats(-80, 80), quality), min_size=1, max_size=20)


def tensors(rows, dtype=torch.float64):
    logits = torch.tensor([logit for logit, _ in rows], dtype=dtype, requires_grad=True)
    return logits, torch.tensor([value for _, value in rows], dtype=dtype)


def log_sigmoid(logit):
    return -math.log1p(math.exp(-logit))


@given(elements, st.sampled_from(GAMMAS))
def test_quality_focal_loss_is_the_papers_formula(rows, gamma):
    logits, targets = tensors(rows)
    loss = quality_focal_loss(logits, targets, gamma)
    for value, (logit, q) in zip(loss.tolist(), rows, strict=True):
        p = 1 / (1 + math.exp(-logit))
        apart = 1 / (1 + math.exp(logit)) if q == 1 else abs(q - p)
        wanted = -(apart**gamma) * ((1 - q) * log_sigmoid(-logit) + q * log_sigmoid(logit))
        assert value == pytest.approx(wanted, rel=1e-6, abs=1e-12)
    loss.sum().backward()
    assert torch.isfinite(logits.grad).all()


@given(elements, st.floats(0, 1), st.sampled_from(GAMMAS))
def test_varifocal_loss_is_the_papers_formula(rows, alpha, gamma):
    logits, targets = tensors(rows)
    loss = varifocal_loss(logits, targets, alpha, gamma)
    for value, (logit, q) in zip(loss.tolist(), rows, strict=True):
        if q > 0:
            wanted = -q * (q * log_sigmoid(logit) + (1 - q) * log_sigmoid(-logit))
        else:
            wanted = -alpha * (1 / (1 + math.exp(-logit))) ** gamma * log_sigmoid(-logit)
        assert value == pytest.approx(wanted, rel=1e-6, abs=1e-12)
    loss.sum().backward()
    assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("gamma", GAMMAS)
def test_gradients_are_those_of_the_values(gamma):
    torch.manual_seed(0)
    logits = (3 * torch.randn(30, dtype=torch.float64)).requires_grad_()
    targets = torch.cat([torch.zeros(10), torch.ones(10), torch.rand(10)]).double()
    assert torch.autograd.gradcheck(lambda values: quality_focal_loss(values, targets, gamma), logits)
    assert torch.autograd.gradcheck(lambda values: varifocal_loss(values, targets, 0.3, gamma), logits)


@given(elements, st.sampled_from(GAMMAS))
def test_hard_targets_give_the_focal_loss(rows, gamma):
    hard = [(logit, float(q >= 0.5)) for logit, q in rows]
    logits, targets = tensors(hard)
    other = logits.detach().clone().requires_grad_()
    # Alpha one half weighs both kinds alike.
    soft, focal = quality_focal_loss(logits, targets, gamma), 2 * focal_loss(other, targets, 0.5, gamma)
    torch.testing.assert_close(soft, focal, rtol=1e-7, atol=1e-9)
    soft.sum().backward()
    focal.sum().backward()
    torch.testing.assert_close(logits.grad, other.grad, rtol=1e-7, atol=1e-9)
    # Varifocal: positives have the plain cross-entropy, the background the focal loss.
    loss = varifocal_loss(logits, targets, 0.75, gamma)
    wanted = torch.where(
        targets > 0, cross_entropy_loss(logits, targets), focal_loss(logits, torch.zeros_like(targets), 0.25, gamma)
    )
    torch.testing.assert_close(loss, wanted, rtol=1e-7, atol=1e-9)


@given(st.floats(-8, 8), st.sampled_from(GAMMAS))
def test_a_score_that_equals_the_quality_costs_least(logit, gamma):
    """The IoU itself has the smallest varifocal loss; its quality focal loss is 0 for gamma > 0."""
    own = torch.tensor([logit], dtype=torch.float64)
    others = torch.linspace(-9, 9, 361, dtype=torch.float64)
    target = own.sigmoid().expand(361)
    assert (varifocal_loss(others, target, 0.75, gamma) >= varifocal_loss(own, target[:1], 0.75, gamma) - 1e-12).all()
    assert gamma == 0 or float(quality_focal_loss(own, target[:1], gamma)) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("value", [-3e38, -1e4, -100.0, 0.0, 100.0, 1e4, 3e38])
def test_value_and_gradient_are_finite_for_any_logit(value, gamma):
    for q in (0.0, 1e-30, 1e-6, 0.5, 1 - 1e-7, 1.0):
        for loss in (
            lambda logits, targets: quality_focal_loss(logits, targets, gamma),
            lambda logits, targets: varifocal_loss(logits, targets, 0.75, gamma),
        ):
            logits = torch.full((1000,), value, requires_grad=True)
            total = loss(logits, torch.full((1000,), q)).sum()
            total.backward()
            assert total.isfinite(), q
            assert logits.grad.isfinite().all(), q


def test_the_gradient_where_score_and_quality_are_equal_is_finite():
    logits = torch.tensor([0.0, 1e-9, -1e-9], requires_grad=True)
    quality_focal_loss(logits, torch.full((3,), 0.5), 0.5).sum().backward()
    assert logits.grad.isfinite().all()
