"""Classification losses with a soft target: the IoU of the predicted box with the true one instead of 1.

The score then tells how well the box fits, too, so that suppression keeps the best box of an object.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from pipeline.detection.bounded import LOGIT_LIMIT

# For gamma < 1 the slope of |q - p|^gamma has no limit at q = p; nearer than this, it is cut off.
_NEAREST = 1e-6


class _QualityFocal(torch.autograd.Function):
    """The loss ``|q - p|^gamma`` times the cross-entropy; the forward pass computes its gradient too.

    For hard targets, |q - p| is the sigmoid of the wrong class's logit, which loses no digits to a subtraction.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, quality: Tensor, gamma: float) -> Tensor:
        z = logits.clamp(-LOGIT_LIMIT, LOGIT_LIMIT)  # so a sum over all anchors stays finite
        p, other = torch.sigmoid(z), torch.sigmoid(-z)
        none, full = quality == 0, quality == 1
        entropy = quality * F.softplus(-z) + (1 - quality) * F.softplus(z)
        slope = torch.where(full, -other, p - quality)  # of the entropy
        apart = slope.abs()
        # p (1 - p) / |q - p|, where the slope of p is p (1 - p)
        share = torch.where(none, other, torch.where(full, p, p * other / apart.clamp(min=_NEAREST)))
        factor = apart**gamma
        ctx.save_for_backward(factor * (gamma * slope.sign() * share * entropy + slope))
        return factor * entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None]:
        return upstream * ctx.saved_tensors[0], None, None


def quality_focal_loss(logits: Tensor, quality: Tensor, gamma: float) -> Tensor:
    """Return the quality focal loss of each element, ``-|q - p|^gamma ((1 - q) log(1 - p) + q log p)``.

    Li et al. 2020 (generalized focal loss), eq. 5; gamma is their beta. Hard targets give the focal loss without alpha.

    Args:
        logits: any shape.
        quality: same shape, 0 to 1: the IoU of a positive anchor's predicted box, 0 for background.
        gamma: focusing exponent.
    """
    loss: Tensor = _QualityFocal.apply(logits, quality, gamma)
    return loss


def varifocal_loss(logits: Tensor, quality: Tensor, alpha: float, gamma: float) -> Tensor:
    """Return the varifocal loss of each element (Zhang et al. 2021, eq. 2).

    ``-q (q log p + (1 - q) log(1 - p))`` where q > 0, else ``-alpha p^gamma log(1 - p)``: only the background is
    focused on its hard examples, and a positive weighs as much as its box is good.

    Args:
        logits: any shape.
        quality: as in `quality_focal_loss`.
        alpha: weight of the background.
        gamma: focusing exponent of the background.
    """
    z = logits.clamp(-LOGIT_LIMIT, LOGIT_LIMIT)
    entropy = quality * F.softplus(-z) + (1 - quality) * F.softplus(z)
    background = alpha * quality_focal_loss(logits, torch.zeros_like(quality), gamma)
    return torch.where(quality > 0, quality * entropy, background)
