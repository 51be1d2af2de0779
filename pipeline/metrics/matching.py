"""Matching of detections to true boxes as in COCO, for all boxes or for a range of sizes."""

from typing import NamedTuple

import numpy as np

from pipeline.metrics.results import Bools, Floats, ImageResult, areas, pairwise_iou

# Dividing whole numbers gives exactly the floats 0.5, 0.55 ... 0.95.
IOU_THRESHOLDS = np.arange(50, 100, 5) / 100
MAX_DETECTIONS = 100
# COCO's own sizes, as areas in pixels of the original image: an opacity is hardly ever below 'large'.
AREA_RANGES = {
    "all": (0.0, 1e10),
    "small": (0.0, 32.0**2),
    "medium": (32.0**2, 96.0**2),
    "large": (96.0**2, 1e10),
}


class Matches(NamedTuple):
    """The matches of an image's best 100 detections at each IoU threshold.

    Attributes:
        hit: whether a detection matches a box that counts, ``[T, N]``.
        miss: whether it is a false positive, ``[T, N]``; a detection that is neither does not count.
        truths: number of boxes that count.
    """

    hit: Bools
    miss: Bools
    truths: int


def match(result: ImageResult, area_range: tuple[float, float]) -> Matches:
    """Match each detection, by descending score, to the unmatched box that it overlaps most, if the IoU suffices.

    Boxes outside ``area_range`` do not count. Neither do detections that take such a box because no other
    fits, nor unmatched detections outside the range (pycocotools' ``evaluateImg``).
    """
    low, high = area_range
    boxes = result.boxes[:MAX_DETECTIONS]
    outside = (areas(boxes) < low) | (areas(boxes) > high)
    sizes = areas(result.truth)
    counts = (sizes >= low) & (sizes <= high)
    shape = (len(IOU_THRESHOLDS), len(boxes))
    hit, ignored = np.zeros(shape, bool), np.zeros(shape, bool)
    if len(counts):
        # Boxes that count come first. COCO takes the last of equal overlaps, argmax the first: the order is reversed.
        order = np.argsort(~counts, kind="stable")
        _match(pairwise_iou(boxes, result.truth[order])[:, ::-1], counts[order][::-1], hit, ignored)
    return Matches(hit, ~hit & ~ignored & ~outside, int(counts.sum()))


def _match(iou: Floats, counts: Bools, hit: Bools, ignored: Bools) -> None:
    """Fill ``hit`` and ``ignored`` ``[T, N]`` from the overlaps ``[N, M]``."""
    rows = np.arange(len(hit))
    least = np.minimum(IOU_THRESHOLDS, 1 - 1e-10)
    free = np.ones((len(hit), iou.shape[1]), bool)
    # A detection that overlaps no box enough takes none, so the loop may leave it out.
    for column in np.flatnonzero((iou >= least[0]).any(1)):
        overlaps = iou[column]
        fits = free & (overlaps >= least[:, None])
        best = np.where(fits & counts, overlaps, -1).argmax(1)
        other = np.where(fits & ~counts, overlaps, -1).argmax(1)
        counted, spare = fits[rows, best] & counts[best], fits[rows, other] & ~counts[other]
        hit[:, column] = counted
        ignored[:, column] = ~counted & spare
        taken = np.where(counted, best, other)
        used = counted | spare
        free[rows[used], taken[used]] = False
