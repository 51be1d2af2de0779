"""Losses of the detector: classification over all anchors, box regression over the positive ones.

Everything here is computed in float32 or wider, because log and focal terms lose their precision in 16-bit types.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from pipeline.detection.anchors import Anchors
from pipeline.detection.atss import select_samples
from pipeline.detection.bounded import LOGIT_LIMIT
from pipeline.detection.box_losses import every_box_loss, matched_iou, positive_box_loss
from pipeline.detection.matching import BACKGROUND, IGNORED, match_anchors
from pipeline.detection.quality_losses import quality_focal_loss, varifocal_loss
from pipeline.detection.settings import LossSettings

EMA_MOMENTUM, EMA_START = 0.9, 100.0
_EPS = 1e-6


class _Modulated(torch.autograd.Function):
    """The loss ``weight (1 - p_t)^gamma (-log p_t)`` of each element; the forward pass computes its gradient too.

    With z the logit of the wrong class, 1 - p_t = sigmoid(z) and -log p_t = softplus(z). So no power
    is taken of a number that underflows to 0, whose gradient would be NaN for gamma < 1. With the
    gradient written out, a step makes half as many passes over all anchors as with autograd.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, positive: Tensor, weight: Tensor, gamma: float) -> Tensor:
        sign = torch.where(positive, -1.0, 1.0).to(logits.dtype)
        z = (logits * sign).clamp_(-LOGIT_LIMIT, LOGIT_LIMIT)  # so a sum over all anchors stays finite
        entropy = F.softplus(z)
        wrong = torch.sigmoid(z)
        if gamma == 0:
            ctx.save_for_backward(weight * sign * wrong)
            return weight * entropy
        # z - softplus(z) is log sigmoid(z).
        factor = weight * (wrong.square() if gamma == 2 else torch.exp(gamma * (z - entropy)))
        ctx.save_for_backward(factor * sign * (gamma * (1 - wrong) * entropy + wrong))
        return factor * entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None, None]:
        return upstream * ctx.saved_tensors[0], None, None, None


def focal_loss(logits: Tensor, targets: Tensor, alpha: float, gamma: float) -> Tensor:
    """Return the focal loss of each element, ``-alpha_t (1 - p_t)^gamma log p_t`` (Lin et al. 2017, eq. 5).

    Args:
        logits: any shape.
        targets: same shape, 0 or 1.
        alpha: weight of positives; negatives weigh 1 - alpha.
        gamma: focusing exponent; 0 gives balanced cross-entropy.

    Returns:
        Losses of the same shape.
    """
    return _modulated(logits, targets > 0, alpha, 1 - alpha, gamma)


def _modulated(
    logits: Tensor, positive: Tensor, positive_weight: float | Tensor, negative_weight: float | Tensor, gamma: float
) -> Tensor:
    weight = torch.where(positive, positive_weight, negative_weight).to(logits.dtype)
    loss: Tensor = _Modulated.apply(logits, positive, weight, gamma)
    return loss


def cross_entropy_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the binary cross-entropy of each element, ``-log p_t``."""
    return _modulated(logits, targets > 0, 1.0, 1.0, 0)


def balanced_cross_entropy_loss(logits: Tensor, targets: Tensor, alpha: float) -> Tensor:
    """Return ``-alpha_t log p_t``: positives weigh ``alpha``, negatives ``1 - alpha``."""
    return focal_loss(logits, targets, alpha, gamma=0)


def weighted_cross_entropy_loss(logits: Tensor, targets: Tensor, beta: float) -> Tensor:
    """Return ``-(beta y log p + (1 - y) log(1 - p))``: only the positives are weighted."""
    return _modulated(logits, targets > 0, beta, 1.0, 0)


def frequency_balanced_cross_entropy_loss(logits: Tensor, targets: Tensor, counted: Tensor) -> Tensor:
    """Return the balanced cross-entropy whose alpha is the share of negatives among the counted elements.

    Args:
        logits: any shape.
        targets: same shape, 0 or 1.
        counted: same shape, bool; False for elements that the loss ignores.
    """
    share = ((targets == 0) & counted).sum().to(logits.dtype) / counted.sum().clamp(min=1)
    beta = share.clamp(_EPS, 1 - _EPS)
    return _modulated(logits, targets > 0, beta, 1 - beta, 0)


def hardest_negatives(losses: Tensor, negative: Tensor, count: Tensor) -> Tensor:
    """Return a mask of the negatives with the ``count`` largest losses of the batch, at least one, and all ties.

    This is online hard example mining (Shrivastava et al. 2016), as Lin et al. compare it with the focal
    loss: three negatives count for each positive, and the others add nothing.
    """
    ordered = torch.where(negative, losses.detach(), -1.0).flatten().sort(descending=True).values
    # An index on the GPU would be waited for; gather() takes it there.
    cutoff = ordered.gather(0, (count.round().long() - 1).clamp(0, len(ordered) - 1)[None])
    return negative & (losses >= cutoff)


class Losses(NamedTuple):
    """Scalars: the classification loss, the (weighted) box loss, and the positive anchors per image."""

    classification: Tensor
    box: Tensor
    positives: Tensor


class Totals(NamedTuple):
    """Counts of images and positive anchors in one optimizer step that consists of more than one batch."""

    images: Tensor
    positives: Tensor


class DetectionLoss(nn.Module):
    """The loss of the detector: it matches anchors to boxes and computes both losses for the whole batch at once."""

    running_positives: Tensor

    def __init__(self, settings: LossSettings) -> None:
        super().__init__()
        self.settings = settings
        self.register_buffer("running_positives", torch.tensor(EMA_START))

    def count(self, anchors: Anchors, boxes: Tensor, labels: Tensor) -> Tensor:
        """Count the positive anchors of a batch, for the ``totals`` that `forward` takes."""
        return (self._match(anchors, boxes, labels) > BACKGROUND).sum()

    def observe(self, positives: Tensor) -> None:
        """Add the positives of a step to the running mean of the normaliser ``ema``."""
        if self.settings.normalizer == "ema" and self.training:
            new = positives.clamp(min=1).to(self.running_positives.dtype)
            self.running_positives.lerp_(new, 1 - EMA_MOMENTUM)

    def _match(self, anchors: Anchors, boxes: Tensor, labels: Tensor) -> Tensor:
        settings = self.settings
        if settings.matching == "atss":
            return select_samples(anchors, boxes, labels)
        return match_anchors(
            anchors, boxes, labels, settings.fg_iou_thresh, settings.bg_iou_thresh, settings.low_quality_matches
        )

    def forward(
        self,
        logits: Tensor,
        deltas: Tensor,
        anchors: Anchors,
        boxes: Tensor,
        labels: Tensor,
        totals: Totals | None = None,
    ) -> Losses:
        """Return the losses of a batch.

        Args:
            logits: ``[B, A, K]``.
            deltas: ``[B, A, 4]``.
            anchors: anchors in the order of the outputs.
            boxes: ``[B, M, 4]`` xyxy pixels.
            labels: ``[B, M]`` class 0 to K - 1, or -1 where there is no box.
            totals: counts of the step that this batch is a part of; the losses of the parts then add up to
                those of one large batch, and the caller calls `observe`. None: the batch is the whole step.
        """
        logits, deltas = logits.float(), deltas.float()
        settings = self.settings
        matched = self._match(anchors, boxes, labels)
        positive = matched > BACKGROUND  # (B, A)
        targets = _targets(matched, positive, labels, logits.shape[2])
        counted = (matched != IGNORED)[..., None].expand_as(targets)
        if settings.classification in ("quality_focal", "varifocal"):
            quality = matched_iou(deltas, boxes, anchors.boxes, matched)[..., None] * targets
            elements = self._soft_classification(logits, quality)
        else:
            elements = self._classification(logits, targets, counted)
        if settings.sampling == "ohem":
            counted = targets | hardest_negatives(elements, counted & ~targets, settings.ohem_ratio * targets.sum())
        classification = torch.where(counted, elements, 0.0).sum((1, 2))  # (B,)
        # One anchor in thousands is positive; selecting the positives would make a GPU wait, but costs a CPU nothing.
        summed = positive_box_loss if deltas.is_cpu else every_box_loss
        box = summed(deltas, boxes, anchors.boxes, matched, settings.box, settings.box_beta)  # (B,)
        positives = positive.sum(1)
        if totals is None:
            totals = Totals(torch.full((), len(boxes), device=boxes.device), positives.sum())
            self.observe(totals.positives)
        divisor = self._divisor(positives, totals)
        return Losses(
            (classification / divisor).sum(), settings.box_weight * (box / divisor).sum(), positives.float().mean()
        )

    def _classification(self, logits: Tensor, targets: Tensor, counted: Tensor) -> Tensor:
        settings = self.settings
        match settings.classification:
            case "focal":
                return focal_loss(logits, targets, settings.alpha, settings.gamma)
            case "cross_entropy":
                return cross_entropy_loss(logits, targets)
            case "balanced_cross_entropy":
                return balanced_cross_entropy_loss(logits, targets, settings.alpha)
            case "weighted_cross_entropy":
                return weighted_cross_entropy_loss(logits, targets, settings.beta)
            case "frequency_balanced_cross_entropy":
                return frequency_balanced_cross_entropy_loss(logits, targets, counted)
        raise ValueError(f"Invalid classification loss: {settings.classification!r}")

    def _soft_classification(self, logits: Tensor, quality: Tensor) -> Tensor:
        settings = self.settings
        if settings.classification == "quality_focal":
            return quality_focal_loss(logits, quality, settings.gamma)
        return varifocal_loss(logits, quality, settings.alpha, settings.gamma)

    def _divisor(self, positives: Tensor, totals: Totals) -> Tensor:
        """Return the divisor of the images' loss sums ``[B]``; the quotients then add up to the step's loss."""
        match self.settings.normalizer:
            case "per_image":  # as in the paper: each image by its own positives
                return positives.clamp(min=1) * totals.images
            case "batch":
                return totals.positives.clamp(min=1)
            case "ema":  # as in detectron2: a running mean, steadier if most images have no box
                return self.running_positives.clone()
        raise ValueError(f"Invalid normalizer: {self.settings.normalizer!r}. It must be per_image, batch or ema")


def _targets(matched: Tensor, positive: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Return whether each anchor is positive for each class, bool ``[B, A, K]``."""
    if classes == 1:
        return positive[..., None]
    own_class = labels.gather(1, matched.clamp(min=0))
    return (own_class[..., None] == torch.arange(classes, device=labels.device)) & positive[..., None]
