"""Losses of the detector: classification over all anchors, box regression over the positive ones.

Everything here is computed in float32 or wider: log and focal terms lose themselves in halves.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import complete_box_iou_loss, generalized_box_iou_loss

from pipeline.detection.anchors import decode_boxes, encode_boxes
from pipeline.detection.matching import BACKGROUND, IGNORED, match_anchors

EMA_MOMENTUM, EMA_START = 0.9, 100.0
_EPS = 1e-6


def focal_loss(logits: Tensor, targets: Tensor, alpha: float, gamma: float) -> Tensor:
    """Focal loss of each element, ``-alpha_t (1 - p_t)^gamma log p_t`` (Lin et al. 2017, eq. 5).

    Args:
        logits: any shape.
        targets: same shape, 0 or 1.
        alpha: weight of positives; negatives weigh 1 - alpha.
        gamma: focusing exponent; 0 gives balanced cross-entropy.

    Returns:
        Losses of the same shape.
    """
    # With z the logit of the true class, p_t = sigmoid(z), -log p_t = softplus(-z) and
    # -log(1 - p_t) = softplus(z) = softplus(-z) + z: no power of a number that underflows to 0,
    # whose gradient would be NaN for gamma < 1.
    z = torch.where(targets > 0, logits, -logits)
    cross_entropy = F.softplus(-z)
    alpha_t = torch.where(targets > 0, alpha, 1 - alpha)
    if gamma == 0:
        return alpha_t * cross_entropy
    return alpha_t * torch.exp(-gamma * (cross_entropy + z)) * cross_entropy


def cross_entropy_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Binary cross-entropy of each element, ``-log p_t``."""
    return F.binary_cross_entropy_with_logits(logits, targets, reduction="none")


def balanced_cross_entropy_loss(logits: Tensor, targets: Tensor, alpha: float) -> Tensor:
    """``-alpha_t log p_t``: positives weigh ``alpha``, negatives ``1 - alpha``."""
    return focal_loss(logits, targets, alpha, gamma=0)


def weighted_cross_entropy_loss(logits: Tensor, targets: Tensor, beta: float) -> Tensor:
    """``-(beta y log p + (1 - y) log(1 - p))``: one weight on the positives."""
    return torch.where(targets > 0, beta, 1.0) * cross_entropy_loss(logits, targets)


def frequency_balanced_cross_entropy_loss(logits: Tensor, targets: Tensor, counted: Tensor) -> Tensor:
    """Balanced cross-entropy whose alpha is the share of negatives among the counted elements.

    Args:
        logits: any shape.
        targets: same shape, 0 or 1.
        counted: same shape, bool; elements that are ignored by the loss have no say.
    """
    share = ((targets == 0) & counted).sum().to(logits.dtype) / counted.sum().clamp(min=1)
    beta = share.clamp(_EPS, 1 - _EPS)
    return torch.where(targets > 0, beta, 1 - beta) * cross_entropy_loss(logits, targets)


def box_loss(kind: str, deltas: Tensor, boxes: Tensor, anchors: Tensor, beta: float) -> Tensor:
    """Regression loss of each anchor, ``[B, A]``.

    Args:
        kind: ``smooth_l1`` or ``l1`` on the encoded offsets, ``giou`` or ``ciou`` on the boxes.
        deltas: predicted offsets ``[B, A, 4]``.
        boxes: the box of each anchor ``[B, A, 4]`` xyxy; must have positive sides everywhere.
        anchors: ``[A, 4]``.
        beta: where smooth L1 turns from quadratic to linear.
    """
    if kind in ("giou", "ciou"):
        decoded = decode_boxes(deltas, anchors)
        loss = generalized_box_iou_loss if kind == "giou" else complete_box_iou_loss
        return loss(decoded.reshape(-1, 4), boxes.reshape(-1, 4)).reshape(deltas.shape[:2])
    encoded = encode_boxes(boxes, anchors)
    if kind == "l1":
        return (deltas - encoded).abs().sum(-1)
    if kind != "smooth_l1":
        raise ValueError(f"Invalid box loss: {kind!r}. It must be smooth_l1, l1, giou or ciou")
    return F.smooth_l1_loss(deltas, encoded, reduction="none", beta=beta).sum(-1)


@dataclass(frozen=True)
class LossSettings:
    """What `DetectionLoss` computes; the names are those of the ``loss`` section of the params."""

    classification: str
    alpha: float
    gamma: float
    beta: float
    normalizer: str
    box: str
    box_beta: float
    box_weight: float
    fg_iou_thresh: float
    bg_iou_thresh: float
    low_quality_matches: bool


class Losses(NamedTuple):
    """Scalars: the classification loss, the (weighted) box loss, and positives per image."""

    classification: Tensor
    box: Tensor
    positives: Tensor


class DetectionLoss(nn.Module):
    """Match anchors to boxes and compute both losses for the whole batch at once."""

    running_positives: Tensor

    def __init__(self, settings: LossSettings) -> None:
        super().__init__()
        self.settings = settings
        self.register_buffer("running_positives", torch.tensor(EMA_START))

    def forward(self, logits: Tensor, deltas: Tensor, anchors: Tensor, boxes: Tensor, labels: Tensor) -> Losses:
        """Losses of a batch.

        Args:
            logits: ``[B, A, K]``.
            deltas: ``[B, A, 4]``.
            anchors: ``[A, 4]`` xyxy pixels.
            boxes: ``[B, M, 4]`` xyxy pixels.
            labels: ``[B, M]`` class 0 to K - 1, or -1 where there is no box.
        """
        logits, deltas = logits.float(), deltas.float()
        rules = self.settings
        matched = match_anchors(
            anchors, boxes, labels, rules.fg_iou_thresh, rules.bg_iou_thresh, rules.low_quality_matches
        )
        positive = matched > BACKGROUND  # (B, A)
        chosen = matched.clamp(min=0)
        classes = labels.gather(1, chosen)
        targets = (
            (classes[..., None] == torch.arange(logits.shape[2], device=logits.device)) & positive[..., None]
        ).to(logits.dtype)
        counted = (matched != IGNORED)[..., None].expand_as(targets)
        classification = torch.where(counted, self._classification(logits, targets, counted), 0.0).sum((1, 2))  # (B,)
        # Anchors without a box regress to themselves, so that no infinity is multiplied by zero.
        own_box = boxes.gather(1, chosen[..., None].expand(-1, -1, 4))
        regression = torch.where(positive[..., None], own_box, anchors)
        box = torch.where(positive, box_loss(rules.box, deltas, regression, anchors, rules.box_beta), 0.0).sum(1)
        positives = positive.sum(1)
        divisor = self._divisor(positives)
        return Losses(
            (classification / divisor).sum(), rules.box_weight * (box / divisor).sum(), positives.float().mean()
        )

    def _classification(self, logits: Tensor, targets: Tensor, counted: Tensor) -> Tensor:
        rules = self.settings
        match rules.classification:
            case "focal":
                return focal_loss(logits, targets, rules.alpha, rules.gamma)
            case "cross_entropy":
                return cross_entropy_loss(logits, targets)
            case "balanced_cross_entropy":
                return balanced_cross_entropy_loss(logits, targets, rules.alpha)
            case "weighted_cross_entropy":
                return weighted_cross_entropy_loss(logits, targets, rules.beta)
            case "frequency_balanced_cross_entropy":
                return frequency_balanced_cross_entropy_loss(logits, targets, counted)
        raise ValueError(f"Invalid classification loss: {rules.classification!r}")

    def _divisor(self, positives: Tensor) -> Tensor:
        """What the loss sums of the images ``[B]`` are divided by, so that their sum is the batch's loss."""
        match self.settings.normalizer:
            case "per_image":  # the paper's: each image by its own positives
                return positives.clamp(min=1) * len(positives)
            case "batch":
                return positives.sum().clamp(min=1)
            case "ema":  # detectron2's: a running mean, steadier where most images have no box
                if self.training:
                    new = positives.sum().clamp(min=1).to(self.running_positives.dtype)
                    self.running_positives.lerp_(new, 1 - EMA_MOMENTUM)
                return self.running_positives.clone()
        raise ValueError(f"Invalid normalizer: {self.settings.normalizer!r}. It must be per_image, batch or ema")
