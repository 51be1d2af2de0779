"""The input of the metrics: per image, ranked detections and the true boxes."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class ImageResult:
    """One image: detections ``boxes`` ``[N, 4]`` xyxy with ``scores`` ``[N]``, best first, and ``truth`` ``[M, 4]``."""

    boxes: Floats
    scores: Floats
    truth: Floats


def image_result(boxes: npt.ArrayLike, scores: npt.ArrayLike, truth: npt.ArrayLike) -> ImageResult:
    """Rank detections by descending score; equal scores keep their order."""
    ranked = np.asarray(scores, np.float64).reshape(-1)
    order = np.argsort(-ranked, kind="stable")
    return ImageResult(
        np.asarray(boxes, np.float64).reshape(-1, 4)[order],
        ranked[order],
        np.asarray(truth, np.float64).reshape(-1, 4),
    )


def areas(boxes: Floats) -> Floats:
    """Return the areas of boxes ``[N, 4]``, ``[N]``."""
    return np.asarray((boxes[:, 2:] - boxes[:, :2]).prod(-1))


def pairwise_iou(a: Floats, b: Floats) -> Floats:
    """Return the IoU of boxes ``[N, 4]`` and ``[M, 4]`` xyxy, ``[N, M]``."""
    low, high = np.maximum(a[:, None, :2], b[None, :, :2]), np.minimum(a[:, None, 2:], b[None, :, 2:])
    shared = np.clip(high - low, 0, None).prod(-1)
    return np.asarray(shared / np.maximum(areas(a)[:, None] + areas(b)[None] - shared, 1e-12))


def hits(result: ImageResult, iou_thresholds: Floats) -> Bools:
    """Return which detections match a true box, ``[T, N]``, as the RSNA score defines it.

    In order of descending score, each detection takes the unmatched box that it overlaps most, if
    their IoU exceeds the threshold.
    """
    rows = np.arange(len(iou_thresholds))
    matched = np.zeros((len(rows), len(result.boxes)), bool)
    if not len(result.truth):
        return matched
    free = np.ones((len(rows), len(result.truth)), bool)
    for column, overlaps in enumerate(pairwise_iou(result.boxes, result.truth)):
        best = np.where(free, overlaps, -1).argmax(1)
        taken = overlaps[best] > iou_thresholds
        taken &= free[rows, best]
        matched[:, column] = taken
        free[rows[taken], best[taken]] = False
    return matched


def image_scores(results: Sequence[ImageResult]) -> Floats:
    """Return the score of each image's best detection, or -inf, which is below every threshold, if it has none."""
    return np.array([result.scores[0] if len(result.scores) else -np.inf for result in results])


def has_truth(results: Sequence[ImageResult]) -> Bools:
    """Return which images have a true box."""
    return np.array([len(result.truth) > 0 for result in results], dtype=bool)
