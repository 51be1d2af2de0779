"""Which anchor answers for which box: positive, negative or ignored."""

import torch
from torch import Tensor

BACKGROUND, IGNORED = -1, -2
PADDING = -1  # the label of a row that only fills a batch's box tensor up


def pairwise_iou(boxes: Tensor, anchors: Tensor) -> Tensor:
    """IoU of every box with every anchor, ``[B, M, 4]`` and ``[A, 4]`` -> ``[B, M, A]``, xyxy."""
    low = torch.maximum(boxes[:, :, None, :2], anchors[None, None, :, :2])  # (B, M, A, 2)
    high = torch.minimum(boxes[:, :, None, 2:], anchors[None, None, :, 2:])
    shared = (high - low).clamp(min=0).prod(-1)
    box_area = (boxes[..., 2:] - boxes[..., :2]).prod(-1)
    anchor_area = (anchors[:, 2:] - anchors[:, :2]).prod(-1)
    return shared / (box_area[:, :, None] + anchor_area - shared).clamp(min=1e-9)


def match_anchors(
    anchors: Tensor,
    boxes: Tensor,
    labels: Tensor,
    fg_iou_thresh: float,
    bg_iou_thresh: float,
    low_quality_matches: bool,
) -> Tensor:
    """Match each anchor of each image to a box, to the background, or to nothing.

    Args:
        anchors: ``[A, 4]`` xyxy.
        boxes: ``[B, M, 4]`` xyxy; M is the largest count of the batch, at least 1.
        labels: ``[B, M]`` class of each box, ``PADDING`` where there is none.
        fg_iou_thresh: an anchor of at least this IoU with some box is positive.
        bg_iou_thresh: an anchor below this IoU with every box is background.
        low_quality_matches: also make the anchors that overlap a box most positive, whatever
            their IoU; each then answers for its *own* best box, as in torchvision.

    Returns:
        int64 ``[B, A]``: index of the box, ``BACKGROUND`` or ``IGNORED``.
    """
    valid = (labels != PADDING)[:, :, None]  # (B, M, 1)
    iou = torch.where(valid, pairwise_iou(boxes, anchors), -1.0)  # (B, M, A)
    best, index = iou.max(1)  # (B, A)
    matched = torch.where(best >= fg_iou_thresh, index, torch.where(best < bg_iou_thresh, BACKGROUND, IGNORED))
    if not low_quality_matches:
        return matched
    best_of_box = iou.amax(2, keepdim=True)  # (B, M, 1)
    forced = ((iou == best_of_box) & valid).any(1)
    return torch.where(forced, index, matched)
