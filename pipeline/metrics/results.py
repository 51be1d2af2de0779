"""The input of the metrics: per image, ranked detections and the true boxes.

All metrics are of one class. With several classes, they are taken for each, and their mean is the metric of all.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]
# A score threshold for each class, or for the one class that there is.
Thresholds = float | Sequence[float]


@dataclass(frozen=True)
class ImageResult:
    """One image: detections ``boxes`` ``[N, 4]`` xyxy with ``scores`` ``[N]``, best first, and ``truth`` ``[M, 4]``.

    ``labels`` ``[N]`` and ``truth_labels`` ``[M]`` are the classes of detections and true boxes.
    """

    boxes: Floats
    scores: Floats
    truth: Floats
    labels: Ints
    truth_labels: Ints


def image_result(
    boxes: npt.ArrayLike,
    scores: npt.ArrayLike,
    truth: npt.ArrayLike,
    labels: npt.ArrayLike | None = None,
    truth_labels: npt.ArrayLike | None = None,
) -> ImageResult:
    """Rank detections by descending score; equal scores keep their order. Without labels, all are of class 0."""
    ranked = np.asarray(scores, np.float64).reshape(-1)
    order = np.argsort(-ranked, kind="stable")
    true = np.asarray(truth, np.float64).reshape(-1, 4)
    return ImageResult(
        np.asarray(boxes, np.float64).reshape(-1, 4)[order],
        ranked[order],
        true,
        _labels(labels, len(ranked))[order],
        _labels(truth_labels, len(true)),
    )


def _labels(labels: npt.ArrayLike | None, count: int) -> Ints:
    return np.zeros(count, np.int64) if labels is None else np.asarray(labels, np.int64).reshape(-1)


def keep(result: ImageResult, chosen: Bools) -> ImageResult:
    """Return the image with the detections that ``chosen`` ``[N]`` marks."""
    return replace(result, boxes=result.boxes[chosen], scores=result.scores[chosen], labels=result.labels[chosen])


def each_class(results: Sequence[ImageResult], classes: int) -> list[list[ImageResult]]:
    """Return the results of each class alone: its detections and its true boxes in every image."""
    if classes == 1:
        return [list(results)]
    return [[_of_class(result, label) for result in results] for label in range(classes)]


def _of_class(result: ImageResult, label: int) -> ImageResult:
    true = result.truth_labels == label
    kept = keep(result, result.labels == label)
    return replace(kept, truth=result.truth[true], truth_labels=result.truth_labels[true])


def thresholds_of(thresholds: Thresholds) -> tuple[float, ...]:
    """Return the threshold of each class."""
    return tuple(thresholds) if isinstance(thresholds, Sequence) else (thresholds,)


def reported(result: ImageResult, thresholds: Thresholds) -> Bools:
    """Return which detections ``[N]`` are above the threshold of their class."""
    return np.asarray(result.scores > np.asarray(thresholds_of(thresholds))[result.labels])


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
