"""Losses over masks, for the auxiliary mask head: overlap, its surrogates, and weighted cross-entropy.

A mask consists of boxes filled with ones, as in Retina U-Net (Jaeger et al. 2018). ``logits`` and ``masks``
are ``[B, H, W]``; each loss is computed per image and averaged over the batch.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.detection.bounded import LOGIT_LIMIT, bounded
from pipeline.detection.matching import PADDING

_EPS = 1.0  # pixels; avoids 0 / 0 where there is nothing


class MaskSettings(NamedTuple):
    """Settings of `mask_loss`.

    Attributes:
        terms: weight of each loss by name; no terms means that there is no mask head.
        tversky_beta: weight of false alarms in the Tversky loss; misses weigh 1 - beta.
        distance_w0: largest extra weight between two objects.
        distance_sigma: reach of this extra weight, in pixels of the image.
    """

    terms: Mapping[str, float]
    tversky_beta: float
    distance_w0: float
    distance_sigma: float


def mask_loss(logits: Tensor, boxes: Tensor, labels: Tensor, settings: MaskSettings, stride: int) -> Tensor:
    """Return the weighted sum of the losses in ``settings``, a scalar.

    Args:
        logits: ``[B, H, W]``, one value per ``stride`` x ``stride`` pixels.
        boxes: ``[B, M, 4]`` xyxy pixels of the image.
        labels: ``[B, M]``, -1 where there is no box.
        settings: weights and constants of the losses.
        stride: stride of the mask, in pixels.
    """
    logits = bounded(logits, LOGIT_LIMIT)
    distances = box_distances(boxes, labels, logits.shape[1], logits.shape[2], stride)
    masks = (distances == 0).any(1).to(logits.dtype)
    total = logits.new_zeros(())
    for name, weight in settings.terms.items():
        total = total + weight * _one_loss(name, logits, masks, distances, settings)
    return total


def _one_loss(name: str, logits: Tensor, masks: Tensor, distances: Tensor, settings: MaskSettings) -> Tensor:
    match name:
        case "bce":
            return F.binary_cross_entropy_with_logits(logits, masks)
        case "distance_weighted_bce":
            weights = distance_weights(distances, settings.distance_w0, settings.distance_sigma)
            return F.binary_cross_entropy_with_logits(logits, masks, weights)
        case "dice":
            return dice_loss(logits, masks)
        case "tversky":
            return tversky_loss(logits, masks, settings.tversky_beta)
        case "lovasz_hinge":
            return lovasz_hinge_loss(logits, masks)
        case "lovasz_softmax":
            return lovasz_softmax_loss(logits, masks)
    raise ValueError(f"Invalid mask loss: {name!r}")


def box_distances(boxes: Tensor, labels: Tensor, height: int, width: int, stride: int) -> Tensor:
    """Return each cell centre's distance to each box, ``[B, M, H, W]`` image pixels; 0 inside, inf for no box."""
    y = (torch.arange(height, device=boxes.device) + 0.5) * stride
    x = (torch.arange(width, device=boxes.device) + 0.5) * stride
    x0, y0, x1, y1 = (side[..., None] for side in boxes.unbind(-1))  # (B, M, 1)
    outside_x = torch.maximum(x0 - x, x - x1).clamp(min=0)[:, :, None, :]  # (B, M, 1, W)
    outside_y = torch.maximum(y0 - y, y - y1).clamp(min=0)[:, :, :, None]
    distance = torch.sqrt(outside_x.square() + outside_y.square())
    return torch.where((labels == PADDING)[:, :, None, None], torch.inf, distance)


def distance_weights(distances: Tensor, w0: float, sigma: float) -> Tensor:
    """Return ``1 + w0 exp(-(d1 + d2)^2 / (2 sigma^2))`` (Ronneberger et al. 2015, eq. 2), ``[B, H, W]``.

    d1 and d2 are the distances to the nearest and the second nearest object; with fewer than two
    objects the weight is 1. ``distances`` are ``[B, M, H, W]``.
    """
    if distances.shape[1] < 2:
        return torch.ones_like(distances[:, 0])
    nearest = distances.topk(2, dim=1, largest=False).values.sum(1)
    return 1 + w0 * torch.exp(-nearest.square() / (2 * sigma**2))


def dice_loss(logits: Tensor, masks: Tensor) -> Tensor:
    """Return ``1 - (2 sum yp + eps) / (sum y^2 + sum p^2 + eps)`` (Milletari et al. 2016)."""
    p, y = torch.sigmoid(logits).flatten(1), masks.flatten(1)
    shared = (y * p).sum(1)
    return (1 - (2 * shared + _EPS) / (y.square().sum(1) + p.square().sum(1) + _EPS)).mean()


def tversky_loss(logits: Tensor, masks: Tensor, beta: float) -> Tensor:
    """Return ``1 - (TP + eps) / (TP + beta FP + (1 - beta) FN + eps)`` of soft counts (Salehi et al. 2017)."""
    p, y = torch.sigmoid(logits).flatten(1), masks.flatten(1)
    hits, false_alarms, misses = (y * p).sum(1), ((1 - y) * p).sum(1), (y * (1 - p)).sum(1)
    return (1 - (hits + _EPS) / (hits + beta * false_alarms + (1 - beta) * misses + _EPS)).mean()


def lovasz_hinge_loss(logits: Tensor, masks: Tensor) -> Tensor:
    """Return the Jaccard loss's Lovasz extension over hinge errors (Berman et al. 2018, arXiv 1705.08790, sec. 3.1)."""
    y = masks.flatten(1)
    # Errors below 0 count for nothing, wherever they stand in the order.
    errors = F.relu(1 - logits.flatten(1) * (2 * y - 1))
    return _lovasz(errors, y).mean()


def lovasz_softmax_loss(logits: Tensor, masks: Tensor) -> Tensor:
    """Return the Lovasz-softmax over background and object (section 3.2), averaged over the classes of an image."""
    p, y = torch.sigmoid(logits).flatten(1), masks.flatten(1)
    losses = torch.stack([_lovasz((y - p).abs(), truth) for truth in (y, 1 - y)], 1)  # (B, 2)
    present = torch.stack([y.sum(1) > 0, (1 - y).sum(1) > 0], 1)
    return (torch.where(present, losses, 0.0).sum(1) / present.sum(1)).mean()


def _lovasz(errors: Tensor, truth: Tensor) -> Tensor:
    """Sum errors ``[B, P]`` in descending order, each times its increment of the Jaccard loss -> ``[B]``."""
    ordered, order = errors.sort(dim=1, descending=True)
    truth = truth.gather(1, order)
    total = truth.sum(1, keepdim=True)
    intersection = total - truth.cumsum(1)
    union = total + (1 - truth).cumsum(1)
    jaccard = 1 - intersection / union
    gradient = torch.cat([jaccard[:, :1], jaccard[:, 1:] - jaccard[:, :-1]], 1)
    return (ordered * gradient).sum(1)
