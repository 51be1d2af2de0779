"""The score of the RSNA Pneumonia Detection Challenge, as its evaluation page defines it.

An image's score is the mean of TP / (TP + FP + FN) over IoU thresholds .40, .45 ... .75; the score of a
set is the mean over its images. Images with neither boxes nor predictions are left out. With several classes, an
image's score is the mean over those for which it is not left out.
"""

from collections.abc import Sequence

import numpy as np

from pipeline.metrics.results import Floats, ImageResult, Thresholds, each_class, has_truth, hits, thresholds_of

# Dividing whole numbers makes .65 exactly .65, which steps of .05 from .40 do not give.
IOU_THRESHOLDS = np.arange(40, 80, 5) / 100


def scores_by_count(result: ImageResult) -> Floats:
    """Return the image's score with its best 0, 1, ... N detections, ``[N + 1]``; NaN: the image is left out."""
    counts, truth = np.arange(len(result.boxes) + 1), len(result.truth)
    true_positives = np.pad(np.cumsum(hits(result, IOU_THRESHOLDS), 1), ((0, 0), (1, 0)))  # (T, N + 1)
    with np.errstate(invalid="ignore"):
        # TP + FP + FN = detections + boxes - TP; 0 / 0 without detections and boxes.
        return np.asarray((true_positives / (counts + truth - true_positives)).mean(0))


def rsna_scores(results: Sequence[ImageResult], score_thresh: float) -> Floats:
    """Return the score of each image with its detections above ``score_thresh``; NaN: left out of the mean."""
    kept = [int((result.scores > score_thresh).sum()) for result in results]
    return np.array([scores_by_count(result)[count] for result, count in zip(results, kept, strict=True)])


def image_rsna_scores(results: Sequence[ImageResult], thresholds: Thresholds) -> Floats:
    """Return the score of each image, the mean over its classes; NaN: left out for all of them."""
    levels = thresholds_of(thresholds)
    parts = zip(each_class(results, len(levels)), levels, strict=True)
    return mean_of_known(np.stack([rsna_scores(part, level) for part, level in parts]))


def mean_of_known(values: Floats) -> Floats:
    """Return the mean of values ``[K, ...]`` over their first axis, without those that are NaN; NaN if all are."""
    if len(values) == 1:
        return np.asarray(values[0])
    known = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        return np.asarray(np.where(known, values, 0.0).sum(0) / known.sum(0))


def mean_score(scores: Floats) -> float:
    """Return the mean over the images that count; 0 if there are none."""
    counted = scores[~np.isnan(scores)]
    return float(counted.mean()) if len(counted) else 0.0


def rsna_score(results: Sequence[ImageResult], score_thresh: float) -> float:
    """Return the score of a set of images, 0 to 1."""
    return mean_score(rsna_scores(results, score_thresh))


def best_threshold(results: Sequence[ImageResult]) -> tuple[float, float]:
    """Return the score threshold with the highest RSNA score, and that score."""
    thresholds, scores = best_thresholds(results, np.ones((1, len(results))))
    return float(thresholds[0]), float(scores[0])


def best_thresholds(results: Sequence[ImageResult], weights: Floats) -> tuple[Floats, Floats]:
    """Return the best threshold and its score when each image counts as often as a row of ``weights`` says.

    All thresholds that make a difference are tried: detections enter one by one, best first.

    Args:
        results: the images.
        weights: ``[D, I]``.

    Returns:
        Thresholds ``[D]`` and scores ``[D]``; 1 and 0 where no threshold gives more than 0.
    """
    ranked = np.concatenate([np.zeros(0), *(result.scores for result in results)])
    order = np.argsort(-ranked, kind="stable")
    ranked = ranked[order]
    if not len(ranked):
        return np.ones(len(weights)), np.zeros(len(weights))
    image = np.repeat(np.arange(len(results)), [len(result.scores) for result in results])[order]
    gain = np.concatenate([np.diff(np.nan_to_num(scores_by_count(result))) for result in results])[order]
    # An image without boxes begins to count (as 0) with its first detection.
    added = np.concatenate([(np.arange(len(result.scores)) == 0) & (not len(result.truth)) for result in results])[
        order
    ]
    total = np.cumsum(gain * weights[:, image], 1)
    counted = (weights @ has_truth(results))[:, None] + np.cumsum(added * weights[:, image], 1)
    # A threshold keeps all detections of equal score or none of them.
    last_of_score = np.append(ranked[1:] < ranked[:-1], True)
    values = np.where(last_of_score, total / np.maximum(counted, 1), 0)
    best = values.argmax(1)
    # Half-way to the next lower score: as far as possible from the detections that it must keep and drop.
    lowest = min(ranked[-1] - 0.1 * (abs(ranked[-1]) or 1.0), np.nextafter(ranked[-1], -np.inf))
    below = np.append(ranked[1:], lowest)[best]
    middle = (ranked[best] + below) / 2
    scores = values.max(1)
    # Between neighbouring floats there is no middle.
    return np.where(scores > 0, np.where(middle < ranked[best], middle, below), 1.0), scores
