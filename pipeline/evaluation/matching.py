"""Matching as COCO does it, for boxes of all sizes and of some."""

from typing import NamedTuple

import numpy as np

from pipeline.evaluation.results import Bools, Floats, ImageResult, areas, pairwise_iou

# Whole numbers divided: each is exactly the number that it is called.
IOU_THRESHOLDS = np.arange(50, 100, 5) / 100
MAX_DETECTIONS = 100
# Pixels of the original. COCO's own sizes: an opacity is hardly ever below 'large'.
AREA_RANGES = {
    "all": (0.0, 1e10),
    "small": (0.0, 32.0**2),
    "medium": (32.0**2, 96.0**2),
    "large": (96.0**2, 1e10),
}


class Matches(NamedTuple):
    """What became of an image's best 100 detections at each IoU threshold.

    Attributes:
        hit: matches a box that counts ``[T, N]``.
        miss: is a false positive ``[T, N]``; what is neither does not count.
        truths: how many boxes count.
    """

    hit: Bools
    miss: Bools
    truths: int


def match(result: ImageResult, area_range: tuple[float, float]) -> Matches:
    """In order of descending score each detection takes the unmatched box that it overlaps most, if that is enough.

    Boxes outside ``area_range`` do not count, nor do detections that take one for want of a better,
    nor unmatched detections outside the range (pycocotools' ``evaluateImg``).
    """
    low, high = area_range
    boxes = result.boxes[:MAX_DETECTIONS]
    outside = (areas(boxes) < low) | (areas(boxes) > high)
    sizes = areas(result.truth)
    counts = (sizes >= low) & (sizes <= high)
    shape = (len(IOU_THRESHOLDS), len(boxes))
    hit, ignored = np.zeros(shape, bool), np.zeros(shape, bool)
    if len(counts):
        # Boxes that count stand first. Of equal overlaps the last one is taken: turned round, the first.
        order = np.argsort(~counts, kind="stable")
        _match(pairwise_iou(boxes, result.truth[order])[:, ::-1], counts[order][::-1], hit, ignored)
    return Matches(hit, ~hit & ~ignored & ~outside, int(counts.sum()))


def _match(iou: Floats, counts: Bools, hit: Bools, ignored: Bools) -> None:
    """Fill ``hit`` and ``ignored`` ``[T, N]`` from the overlaps ``[N, M]``."""
    rows = np.arange(len(hit))
    least = np.minimum(IOU_THRESHOLDS, 1 - 1e-10)
    free = np.ones((len(hit), iou.shape[1]), bool)
    for column, overlaps in enumerate(iou):
        fits = free & (overlaps >= least[:, None])
        best = np.where(fits & counts, overlaps, -1).argmax(1)
        other = np.where(fits & ~counts, overlaps, -1).argmax(1)
        counted, spare = fits[rows, best] & counts[best], fits[rows, other] & ~counts[other]
        hit[:, column] = counted
        ignored[:, column] = ~counted & spare
        taken = np.where(counted, best, other)
        used = counted | spare
        free[rows[used], taken[used]] = False
