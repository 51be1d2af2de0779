"""Losses of the box subnet, and their sums over the positive anchors.

Value and gradient are finite for any finite offsets, because one that is not finite costs the whole batch its update.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.detection.anchors import MAX_LOG_SCALE, MAX_SHIFT, MIN_SIDE, decode_boxes, encode_boxes
from pipeline.detection.bounded import bounded
from pipeline.detection.matching import BACKGROUND

_EPS = 1e-7  # as in torchvision
# In the shape term, a predicted side counts as at least a ten-thousandth of its anchor's side.
_MIN_LOG_SCALE = math.log(1e-4)


def box_loss(kind: str, deltas: Tensor, boxes: Tensor, anchors: Tensor, beta: float) -> Tensor:
    """Return the regression loss of each anchor, ``[...]``.

    Args:
        kind: ``smooth_l1`` or ``l1`` on the encoded offsets, ``giou`` or ``ciou`` on the boxes.
        deltas: predicted offsets ``[..., 4]``.
        boxes: the box of each anchor ``[..., 4]`` xyxy.
        anchors: ``[..., 4]``, broadcastable to ``boxes``.
        beta: difference at which smooth L1 turns from quadratic to linear.
    """
    deltas = bounded(deltas, MAX_SHIFT)
    if kind == "giou":
        return _generalized_iou_loss(decode_boxes(deltas, anchors), boxes)
    if kind == "ciou":
        return _complete_iou_loss(deltas, boxes, anchors)
    encoded = encode_boxes(boxes, anchors)
    if kind == "l1":
        return (deltas - encoded).abs().sum(-1)
    if kind != "smooth_l1":
        raise ValueError(f"Invalid box loss: {kind!r}. It must be smooth_l1, l1, giou or ciou")
    return F.smooth_l1_loss(deltas, encoded, reduction="none", beta=beta).sum(-1)


def _generalized_iou_loss(boxes: Tensor, others: Tensor) -> Tensor:
    """Return the generalized IoU loss (Rezatofighi et al. 2019) of each box and the other at the same index.

    torchvision's functions select the pairs that overlap, for which a GPU has to be waited for.
    """
    shared, union, hull = _overlap(boxes, others)
    area = hull[..., 0] * hull[..., 1]
    return 1 - shared / (union + _EPS) + (area - union) / (area + _EPS)


def _distance_iou_loss(boxes: Tensor, others: Tensor) -> Tensor:
    """Return the distance IoU loss (Zheng et al. 2020) of each box and the other at the same index."""
    shared, union, hull = _overlap(boxes, others)
    apart = (boxes[..., :2] + boxes[..., 2:] - others[..., :2] - others[..., 2:]) / 2
    return 1 - shared / (union + _EPS) + apart.square().sum(-1) / (hull.square().sum(-1) + _EPS)


def _overlap(boxes: Tensor, others: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the areas ``[...]`` that boxes share and cover with others, and the sides ``[..., 2]`` around both."""
    low, high, other_low, other_high = boxes[..., :2], boxes[..., 2:], others[..., :2], others[..., 2:]
    sides = torch.minimum(high, other_high) - torch.maximum(low, other_low)
    shared = torch.where((sides > 0).all(-1), sides[..., 0] * sides[..., 1], 0.0)
    areas = [(one[..., 2] - one[..., 0]) * (one[..., 3] - one[..., 1]) for one in (boxes, others)]
    hull = torch.maximum(high, other_high) - torch.minimum(low, other_low)
    return shared, areas[0] + areas[1] - shared, hull


def _complete_iou_loss(deltas: Tensor, boxes: Tensor, anchors: Tensor) -> Tensor:
    """Return the complete IoU loss (Zheng et al. 2020) of overlap, distance and shape.

    torchvision's version divides a decoded box's width by its height: 0 / 0 for a small box far away,
    whose sides are lost in the difference of its corners. Here the sides come from the offsets.
    """
    decoded = decode_boxes(deltas, anchors)
    apart = _distance_iou_loss(decoded, boxes)
    sides = (anchors[..., 2:] - anchors[..., :2]).clamp(min=MIN_SIDE)
    predicted = torch.exp(deltas[..., 2:].clamp(_MIN_LOG_SCALE, MAX_LOG_SCALE)) * sides
    wanted = (boxes[..., 2:] - boxes[..., :2]).clamp(min=MIN_SIDE)
    shape = 4 / math.pi**2 * (_angle(wanted) - _angle(predicted)).square()
    with torch.no_grad():
        shared, union, _ = _overlap(decoded, boxes)
        weight = shape / (1 - shared / (union + _EPS) + shape + _EPS)
    return apart + weight * shape


def _angle(size: Tensor) -> Tensor:
    return torch.atan2(size[..., 0], size[..., 1])


@torch.no_grad()
def matched_iou(deltas: Tensor, boxes: Tensor, anchors: Tensor, matched: Tensor) -> Tensor:
    """Return the IoU of each anchor's predicted box with its own true box, ``[B, A]``; 0 for anchors without one.

    Args:
        deltas: predicted offsets ``[B, A, 4]``.
        boxes: ``[B, M, 4]``.
        anchors: ``[A, 4]``.
        matched: ``[B, A]``, see `match_anchors`.
    """
    own_box = boxes.gather(1, matched.clamp(min=0)[..., None].expand(-1, -1, 4))
    shared, union, _ = _overlap(decode_boxes(bounded(deltas, MAX_SHIFT), anchors), own_box)
    return torch.where(matched > BACKGROUND, (shared / (union + _EPS)).clamp(0, 1), 0.0)


def positive_box_loss(
    deltas: Tensor, boxes: Tensor, anchors: Tensor, matched: Tensor, kind: str, beta: float
) -> Tensor:
    """Sum `box_loss` over each image's positive anchors, ``[B]``; they are selected, so shapes depend on the data.

    Args:
        deltas: predicted offsets ``[B, A, 4]``.
        boxes: ``[B, M, 4]``.
        anchors: ``[A, 4]``.
        matched: ``[B, A]``, see `match_anchors`.
        kind: see `box_loss`.
        beta: see `box_loss`.
    """
    image, anchor = (matched > BACKGROUND).nonzero(as_tuple=True)
    loss = box_loss(kind, deltas[image, anchor], boxes[image, matched[image, anchor]], anchors[anchor], beta)
    return loss.new_zeros(len(deltas)).index_add(0, image, loss)


def every_box_loss(deltas: Tensor, boxes: Tensor, anchors: Tensor, matched: Tensor, kind: str, beta: float) -> Tensor:
    """Compute `positive_box_loss` from every anchor: no shape depends on the data, and nothing waits for a GPU."""
    positive = matched > BACKGROUND
    # Anchors without a box regress to themselves, so that no infinity is multiplied by zero.
    own_box = boxes.gather(1, matched.clamp(min=0)[..., None].expand(-1, -1, 4))
    regression = torch.where(positive[..., None], own_box, anchors)
    return torch.where(positive, box_loss(kind, deltas, regression, anchors, beta), 0.0).sum(1)
