"""Thresholds that keep the share of missed patients low on new data, not only on the data they were chosen on.

Patients are the units, because studies of one patient are not independent. A patient with an opacity is missed if any
of the patient's positive studies gets no report. The promises hold for new patients of the same kind as those of val.
"""

import math
from collections.abc import Sequence

import numpy as np
from scipy.special import bdtr

from pipeline.errors import UserError
from pipeline.metrics.results import Floats, ImageResult, has_truth, image_scores

_MARGIN = 2e-6


def sensitive_threshold(
    results: Sequence[ImageResult], groups: Sequence[str], sensitivity: float, confidence: float | None
) -> float:
    """Return the highest score threshold at which the promised sensitivity holds; reports have higher scores.

    Without ``confidence``, conformal risk control (Angelopoulos et al. 2022, theorem 1): the expected share of missed
    new patients is at most ``1 - sensitivity``. With it, the exact binomial bound (Bates et al. 2021): with at least
    this probability over the draw of val, the share is at most ``1 - sensitivity``.

    Args:
        results: detections and true boxes of each image.
        groups: the patient of each image.
        sensitivity: share of patients with an opacity who get a report.
        confidence: probability of the promise, or None for the expectation.

    Raises:
        UserError: too few patients have an opacity, or too many have a study without any detection.
    """
    scores = _weakest(results, groups)
    missable = _missable(len(scores), 1 - sensitivity, confidence)
    promise = f"evaluate.operating_point: sensitivity {sensitivity:g}"
    if missable < 0:
        fewest = _fewest(1 - sensitivity, confidence)
        raise UserError(f"{promise}: val has {len(scores)} patients with an opacity; the promise needs {fewest}")
    undetected = int(np.isneginf(scores).sum())
    if undetected > missable:
        raise UserError(
            f"{promise}: of val's {len(scores)} patients with an opacity, {undetected} have a study without any"
            f" detection, at most {missable} may be missed; lower evaluate.score_thresh, or train longer"
        )
    # The patient with this score must get a report; those of lower scores may be missed. Not closer than this to the
    # score, because files hold scores with nine decimal places.
    kept = float(np.sort(scores)[missable])
    below = scores[scores < kept]
    return max(0.0, (kept + max(float(below.max()) if len(below) else -np.inf, kept - _MARGIN)) / 2)


def missed_patients(results: Sequence[ImageResult], groups: Sequence[str], threshold: float) -> tuple[int, int]:
    """Return how many patients with an opacity are missed at a threshold, and how many there are."""
    scores = _weakest(results, groups)
    return int((scores <= threshold).sum()), len(scores)


def _weakest(results: Sequence[ImageResult], groups: Sequence[str]) -> Floats:
    """Return the lowest image score among the positive studies of each patient who has any."""
    lowest: dict[str, float] = {}
    for group, score, positive in zip(groups, image_scores(results), has_truth(results), strict=True):
        if positive:
            lowest[group] = min(lowest.get(group, math.inf), float(score))
    return np.array(list(lowest.values()))


def _missable(patients: int, risk: float, confidence: float | None) -> int:
    """Return how many of val's patients may be missed; -1: the promise cannot be made."""
    if confidence is None:
        # n / (n + 1) * missed / n + 1 / (n + 1) <= risk
        return math.floor(risk * (patients + 1) - 1 + 1e-9)
    allowed = bdtr(np.arange(patients + 1), patients, risk) <= 1 - confidence
    return int(allowed.sum()) - 1


def _fewest(risk: float, confidence: float | None) -> int:
    """Return the smallest number of patients with which the promise can be made."""
    return next(count for count in range(1, 10**6) if _missable(count, risk, confidence) >= 0)
