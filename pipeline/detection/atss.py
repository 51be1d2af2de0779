"""Adaptive training sample selection (Zhang et al. 2020): each box chooses its own IoU threshold.

Of every pyramid level, the anchors of the ``NEAREST`` cells whose centres are closest to the box's centre are
candidates. A candidate is positive if its IoU with the box reaches the mean plus the standard deviation of all the
candidates' IoUs, and if its centre lies inside the box. All other anchors are background; none is ignored.
"""

import torch
from torch import Tensor

from pipeline.detection.anchors import Anchors
from pipeline.detection.matching import BACKGROUND, PADDING, iou_with_sides

NEAREST = 9  # k of the paper, whose results hardly change from 7 to 17
# Pixels. A centre this close to the box's edge is outside, as in the authors' code.
_MARGIN = 0.01


def select_samples(anchors: Anchors, boxes: Tensor, labels: Tensor) -> Tensor:
    """Match each anchor of each image to a box or to the background; no shape depends on the data.

    Args:
        anchors: the anchors, A in all.
        boxes: ``[B, M, 4]`` xyxy; M is the largest count of the batch, at least 1.
        labels: ``[B, M]`` class of each box, ``PADDING`` where there is no box.

    Returns:
        int64 ``[B, A]``: index of the box, or ``BACKGROUND``. An anchor that suits several boxes belongs to the one
        that it overlaps most; among equal overlaps, to the first.
    """
    matched = torch.full((len(boxes), len(anchors.boxes)), BACKGROUND, device=boxes.device)
    best = torch.zeros(matched.shape, dtype=boxes.dtype, device=boxes.device)
    # Box by box: the candidates of one box are different anchors, those of two boxes may be the same.
    for row in range(boxes.shape[1]):
        box = boxes[:, row]  # (B, 4)
        candidates = _nearest_anchors(anchors, box)  # (B, C)
        iou, inside = _fit(box, anchors.boxes[candidates])
        threshold = iou.mean(1, keepdim=True) + iou.std(1, keepdim=True)
        positive = (iou >= threshold) & inside & (labels[:, row] != PADDING)[:, None]
        former = best.gather(1, candidates)
        better = positive & (iou > former)
        best.scatter_(1, candidates, torch.where(better, iou, former))
        index = torch.where(better, row, matched.gather(1, candidates))
        matched.scatter_(1, candidates, index)
    return matched


def _nearest_anchors(anchors: Anchors, box: Tensor) -> Tensor:
    """Return the candidates of one box of each image, ``[B, 4]`` -> indices ``[B, C]``; ties go to the first cells."""
    centre = (box[:, :2] + box[:, 2:]) / 2
    nearest_of_levels, start = [], 0
    for level, cells in zip(anchors.levels, anchors.centres, strict=True):
        shapes = len(level) // len(cells)
        distance = (cells - centre[:, None]).square().sum(2)  # (B, cells)
        nearest = distance.sort(dim=1, stable=True).indices[:, :NEAREST]
        own = nearest[..., None] * shapes + torch.arange(shapes, device=box.device)
        nearest_of_levels.append(start + own.flatten(1))
        start += len(level)
    return torch.cat(nearest_of_levels, 1)


def _fit(box: Tensor, candidates: Tensor) -> tuple[Tensor, Tensor]:
    """Return the IoU of each image's box ``[B, 4]`` with its candidates ``[B, C, 4]``; whether a centre lies inside."""
    iou = iou_with_sides(box, candidates.unbind(-1))  # (B, C)
    centre = (candidates[..., :2] + candidates[..., 2:]) / 2
    to_edges = torch.cat([centre - box[:, None, :2], box[:, None, 2:] - centre], 2)
    return iou, (to_edges > _MARGIN).all(2)
