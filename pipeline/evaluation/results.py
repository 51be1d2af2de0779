"""What the metrics are computed from: per image, ranked detections and the true boxes."""

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


def pairwise_iou(a: Floats, b: Floats) -> Floats:
    """IoU of boxes ``[N, 4]`` and ``[M, 4]`` xyxy, ``[N, M]``."""
    low, high = np.maximum(a[:, None, :2], b[None, :, :2]), np.minimum(a[:, None, 2:], b[None, :, 2:])
    shared = np.clip(high - low, 0, None).prod(-1)
    areas = (a[:, 2:] - a[:, :2]).prod(-1)[:, None] + (b[:, 2:] - b[:, :2]).prod(-1)[None]
    return np.asarray(shared / np.maximum(areas - shared, 1e-12))


def hits(result: ImageResult, iou_thresholds: Floats, *, inclusive: bool) -> Bools:
    """Which detections match a true box, ``[T, N]``.

    In order of descending score each detection takes the unmatched box that it overlaps most, if
    their IoU reaches (``inclusive``, as in COCO) or exceeds (as in the RSNA score) the threshold.
    """
    iou = pairwise_iou(result.boxes, result.truth)
    matched = np.zeros((len(iou_thresholds), len(result.boxes)), bool)
    if not iou.size:
        return matched
    for row, threshold in enumerate(iou_thresholds):
        free = np.ones(len(result.truth), bool)
        for column, overlaps in enumerate(iou):
            best = int(np.argmax(np.where(free, overlaps, -1)))
            enough = overlaps[best] >= threshold if inclusive else overlaps[best] > threshold
            if free[best] and enough:
                matched[row, column], free[best] = True, False
    return matched


def image_scores(results: Sequence[ImageResult]) -> Floats:
    """The score of each image: that of its best detection, 0 where there is none."""
    return np.array([result.scores[0] if len(result.scores) else 0.0 for result in results])


def has_truth(results: Sequence[ImageResult]) -> Bools:
    """Which images have a true box."""
    return np.array([len(result.truth) > 0 for result in results], dtype=bool)
