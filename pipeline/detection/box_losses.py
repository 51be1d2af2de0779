"""Losses of the box subnet, and their sums over the positive anchors.

Value and gradient are finite for any finite offsets, because one that is not finite costs the whole batch its update.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import distance_box_iou_loss, generalized_box_iou_loss

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
        decoded = decode_boxes(deltas, anchors)
        return generalized_box_iou_loss(decoded.reshape(-1, 4), boxes.reshape(-1, 4)).reshape(deltas.shape[:-1])
    if kind == "ciou":
        return _complete_iou_loss(deltas, boxes, anchors)
    encoded = encode_boxes(boxes, anchors)
    if kind == "l1":
        return (deltas - encoded).abs().sum(-1)
    if kind != "smooth_l1":
        raise ValueError(f"Invalid box loss: {kind!r}. It must be smooth_l1, l1, giou or ciou")
    return F.smooth_l1_loss(deltas, encoded, reduction="none", beta=beta).sum(-1)


def _complete_iou_loss(deltas: Tensor, boxes: Tensor, anchors: Tensor) -> Tensor:
    """Return the complete IoU loss (Zheng et al. 2020) of overlap, distance and shape.

    torchvision's version divides a decoded box's width by its height: 0 / 0 for a small box far away,
    whose sides are lost in the difference of its corners. Here the sides come from the offsets.
    """
    decoded = decode_boxes(deltas, anchors)
    apart = distance_box_iou_loss(decoded.reshape(-1, 4), boxes.reshape(-1, 4)).reshape(deltas.shape[:-1])
    sides = (anchors[..., 2:] - anchors[..., :2]).clamp(min=MIN_SIDE)
    predicted = torch.exp(deltas[..., 2:].clamp(_MIN_LOG_SCALE, MAX_LOG_SCALE)) * sides
    wanted = (boxes[..., 2:] - boxes[..., :2]).clamp(min=MIN_SIDE)
    shape = 4 / math.pi**2 * (_angle(wanted) - _angle(predicted)).square()
    with torch.no_grad():
        weight = shape / (1 - _paired_iou(decoded, boxes) + shape + _EPS)
    return apart + weight * shape


def _angle(size: Tensor) -> Tensor:
    return torch.atan2(size[..., 0], size[..., 1])


def _paired_iou(boxes: Tensor, others: Tensor) -> Tensor:
    """Return the IoU of each box with the other box at the same index, ``[..., 4]`` -> ``[...]``."""
    size = torch.minimum(boxes[..., 2:], others[..., 2:]) - torch.maximum(boxes[..., :2], others[..., :2])
    shared = size.clamp(min=0).prod(-1)
    areas = [(one[..., 2:] - one[..., :2]).prod(-1) for one in (boxes, others)]
    return shared / (areas[0] + areas[1] - shared + _EPS)


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
    iou = _paired_iou(decode_boxes(bounded(deltas, MAX_SHIFT), anchors), own_box)
    return torch.where(matched > BACKGROUND, iou.clamp(0, 1), 0.0)


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
