"""Losses of the box subnet, and their sums over the anchors that answer for a box."""

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import complete_box_iou_loss, generalized_box_iou_loss

from pipeline.detection.anchors import decode_boxes, encode_boxes
from pipeline.detection.matching import BACKGROUND


def box_loss(kind: str, deltas: Tensor, boxes: Tensor, anchors: Tensor, beta: float) -> Tensor:
    """Regression loss of each anchor, ``[...]``.

    Args:
        kind: ``smooth_l1`` or ``l1`` on the encoded offsets, ``giou`` or ``ciou`` on the boxes.
        deltas: predicted offsets ``[..., 4]``.
        boxes: the box of each anchor ``[..., 4]`` xyxy; must have positive sides everywhere.
        anchors: ``[..., 4]``, broadcastable to ``boxes``.
        beta: where smooth L1 turns from quadratic to linear.
    """
    if kind in ("giou", "ciou"):
        decoded = decode_boxes(deltas, anchors)
        loss = generalized_box_iou_loss if kind == "giou" else complete_box_iou_loss
        return loss(decoded.reshape(-1, 4), boxes.reshape(-1, 4)).reshape(deltas.shape[:-1])
    encoded = encode_boxes(boxes, anchors)
    if kind == "l1":
        return (deltas - encoded).abs().sum(-1)
    if kind != "smooth_l1":
        raise ValueError(f"Invalid box loss: {kind!r}. It must be smooth_l1, l1, giou or ciou")
    return F.smooth_l1_loss(deltas, encoded, reduction="none", beta=beta).sum(-1)


def positive_box_loss(
    deltas: Tensor, boxes: Tensor, anchors: Tensor, matched: Tensor, kind: str, beta: float
) -> Tensor:
    """Sum of `box_loss` over each image's positive anchors, ``[B]``, which are picked: their number is in the data.

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
    """As `positive_box_loss`, computed for every anchor: no shape depends on the data, and nothing waits for a GPU."""
    positive = matched > BACKGROUND
    # Anchors without a box regress to themselves, so that no infinity is multiplied by zero.
    own_box = boxes.gather(1, matched.clamp(min=0)[..., None].expand(-1, -1, 4))
    regression = torch.where(positive[..., None], own_box, anchors)
    return torch.where(positive, box_loss(kind, deltas, regression, anchors, beta), 0.0).sum(1)
