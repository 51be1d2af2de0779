"""Matching of anchors to boxes: each anchor is positive, negative or ignored.

Two implementations give the same result. On a GPU every anchor is compared with every box: no shape
depends on the data and nothing waits for the device. On a CPU a box is only compared with the levels
whose anchors are of its size; for a compiler this is one operator with an output of known shape,
whose code it leaves alone.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from pipeline.detection.anchors import Anchors

BACKGROUND, IGNORED = -1, -2
PADDING = -1  # the label of a row that only pads a batch's box tensor


def pairwise_iou(boxes: Tensor, anchors: Tensor) -> Tensor:
    """Return the IoU of every box with every anchor, ``[..., 4]`` and ``[A, 4]`` -> ``[..., A]``, xyxy."""
    return iou_with_sides(boxes, anchors.unbind(-1))


def iou_with_sides(boxes: Tensor, anchors: Sequence[Tensor]) -> Tensor:
    """Compute `pairwise_iou` for anchors given as x0, y0, x1, y1: ``[A]``, or ``[..., A]`` if each box has its own."""
    x0, y0, x1, y1 = (side[..., None] for side in boxes.unbind(-1))
    ax0, ay0, ax1, ay1 = anchors
    width = (torch.minimum(x1, ax1) - torch.maximum(x0, ax0)).clamp(min=0)
    height = (torch.minimum(y1, ay1) - torch.maximum(y0, ay0)).clamp(min=0)
    shared = width * height
    return shared / ((x1 - x0) * (y1 - y0) + (ax1 - ax0) * (ay1 - ay0) - shared)


def match_anchors(
    anchors: Anchors,
    boxes: Tensor,
    labels: Tensor,
    fg_iou_thresh: float,
    bg_iou_thresh: float,
    low_quality_matches: bool,
) -> Tensor:
    """Match each anchor of each image to a box, to the background, or to nothing.

    Args:
        anchors: the anchors, A in all.
        boxes: ``[B, M, 4]`` xyxy; M is the largest count of the batch, at least 1.
        labels: ``[B, M]`` class of each box, ``PADDING`` where there is no box.
        fg_iou_thresh: an anchor of at least this IoU with some box is positive.
        bg_iou_thresh: an anchor below this IoU with every box is background.
        low_quality_matches: make those anchors positive too that overlap a box most, whatever
            their IoU; each is then matched to its *own* best box, as in torchvision.

    Returns:
        int64 ``[B, A]``: index of the box, ``BACKGROUND`` or ``IGNORED``.
    """
    if boxes.is_cpu:
        thresholds = (fg_iou_thresh, bg_iou_thresh, low_quality_matches)
        matched: Tensor = _match_by_level(list(anchors.levels), anchors.boxes, boxes, labels, *thresholds)
        return matched
    return _match_everything(anchors.sides, boxes, labels, fg_iou_thresh, bg_iou_thresh, low_quality_matches)


@torch.library.custom_op("pneumoflow::match_by_level", mutates_args=())
def _match_by_level(
    levels: list[Tensor],
    anchors: Tensor,
    boxes: Tensor,
    labels: Tensor,
    foreground: float,
    background: float,
    low_quality: bool,
) -> Tensor:
    areas = torch.stack([torch.stack(_area(level).aminmax()) for level in levels])
    images = zip(boxes, labels, strict=True)
    return torch.stack(
        [_match_image(levels, anchors, areas, *image, foreground, background, low_quality) for image in images]
    )


@_match_by_level.register_fake
def _(_: list[Tensor], anchors: Tensor, boxes: Tensor, *__: object) -> Tensor:
    return boxes.new_empty((len(boxes), len(anchors)), dtype=torch.int64)


def _match_everything(
    sides: Tensor, boxes: Tensor, labels: Tensor, foreground: float, background: float, low_quality: bool
) -> Tensor:
    """Match all anchors (as ``Anchors.sides``) with all boxes of a batch -> ``[B, A]``."""
    # The index is a float, so that the compiler's loop over the anchors stays a vector loop.
    # A missing box is replaced by one without an area, far away: its IoU with every anchor is 0.
    boxes = torch.where((labels != PADDING)[..., None], boxes, -1e6)
    best = torch.full((len(boxes), sides.shape[1]), -1.0, device=boxes.device, dtype=boxes.dtype)
    index = torch.zeros_like(best)
    forced = torch.zeros_like(best, dtype=torch.bool)
    # Box by box: one pass over the anchors each, and no tensor [B, M, A] is kept.
    for row in range(boxes.shape[1]):
        iou = iou_with_sides(boxes[:, row], sides.unbind())  # (B, A)
        index = torch.where(iou > best, float(row), index)
        best = torch.maximum(best, iou)
        if low_quality:
            valid = labels[:, row] != PADDING
            forced = forced | ((iou == iou.amax(1, keepdim=True)) & valid[:, None])
    matched = torch.where(best >= foreground, index, torch.where(best < background, float(BACKGROUND), float(IGNORED)))
    return torch.where(forced, index, matched).to(torch.int64)


def _match_image(
    levels: Sequence[Tensor],
    anchors: Tensor,
    areas: Tensor,
    boxes: Tensor,
    labels: Tensor,
    foreground: float,
    background: float,
    low_quality: bool,
) -> Tensor:
    """Match one image, ``[M, 4]`` -> ``[A]``; ``areas`` ``[L, 2]`` are each level's smallest and largest area."""
    matched = torch.full((len(anchors),), BACKGROUND)
    rows = (labels != PADDING).nonzero().flatten()
    if not len(rows):
        return matched
    boxes = boxes[rows]
    best_of_box = torch.zeros(len(boxes), dtype=boxes.dtype)
    overlaps = _overlaps(levels, areas, boxes, background)
    for start, near, iou in overlaps:
        best, row = iou.max(0)
        near_box = (best >= background).nonzero().flatten()
        matched[start + near_box] = torch.where(best[near_box] >= foreground, rows[near[row[near_box]]], IGNORED)
        best_of_box[near] = torch.maximum(best_of_box[near], iou.amax(1))
    if low_quality:
        # A box that no level suits may overlap any anchor most, so it is compared with all anchors.
        odd = (best_of_box < background).nonzero().flatten()
        if len(odd):
            iou = pairwise_iou(boxes[odd], anchors)
            best_of_box[odd] = iou.amax(1)
            overlaps.append((0, odd, iou))
        forced = torch.cat([start + (iou == best_of_box[near, None]).any(0).nonzero() for start, near, iou in overlaps])
        forced = forced.flatten()
        matched[forced] = rows[pairwise_iou(boxes, anchors[forced]).argmax(0)]
    return matched


def _overlaps(levels: Sequence[Tensor], areas: Tensor, boxes: Tensor, least: float) -> list[tuple[int, Tensor, Tensor]]:
    """Return per level its first anchor, the boxes that may reach an IoU of ``least``, and their IoUs ``[N, A_l]``.

    The IoU of two boxes is at most the ratio of their areas.
    """
    area = _area(boxes)
    overlaps = []
    start = 0
    for level, (smallest, largest) in zip(levels, areas, strict=True):
        # A little more than needed, to make up for rounding errors.
        near = ((area * 1.001 >= least * smallest) & (least * area <= largest * 1.001)).nonzero().flatten()
        if len(near):
            overlaps.append((start, near, pairwise_iou(boxes[near], level)))
        start += len(level)
    return overlaps


def _area(boxes: Tensor) -> Tensor:
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])
