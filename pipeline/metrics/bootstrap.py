"""Bootstrap 95 % intervals: patients are drawn with replacement, because images of one patient are not independent."""

from collections.abc import Sequence

import numpy as np

from pipeline.metrics.calibration import (
    Calibration,
    Calibrations,
    calibrations_of,
    image_probabilities,
    scores_before,
)
from pipeline.metrics.image_level import auroc, calibration_error, image_average_precision
from pipeline.metrics.matching import AREA_RANGES, MAX_DETECTIONS
from pipeline.metrics.ranking import FROC_RATES, average_precision, average_recall, froc, rank_detections
from pipeline.metrics.results import (
    Floats,
    ImageResult,
    Thresholds,
    areas,
    each_class,
    has_truth,
    image_scores,
    thresholds_of,
)
from pipeline.metrics.rsna_score import best_thresholds, mean_of_known, rsna_scores

_AT_ONCE = 100  # draws per block: larger blocks only cost memory


def patient_weights(groups: Sequence[str], draws: int, seed: int) -> Floats:
    """Return how often each image counts in each draw, ``[draws, images]``."""
    _, codes = np.unique(np.asarray(groups), return_inverse=True)
    patients = int(codes.max()) + 1
    rng = np.random.default_rng(seed)
    return np.asarray(rng.multinomial(patients, np.full(patients, 1 / patients), draws)[:, codes], np.float64)


class Metrics:
    """Every metric of a set of images, for any number of draws: those of each class, and their means.

    Args:
        results: detections and true boxes of each image.
        thresholds: of each class; detections above it count for the RSNA score, sensitivity and specificity.
        calibrations: of each class, to give the probabilities of images; None: the score of an image's best detection
            is its probability.
    """

    def __init__(
        self, results: Sequence[ImageResult], thresholds: Thresholds, calibrations: Calibrations = None
    ) -> None:
        levels = thresholds_of(thresholds)
        maps = [None] * len(levels) if calibrations is None else calibrations_of(calibrations)
        parts = each_class(results, len(levels))
        self._classes = [_OfOneClass(*one) for one in zip(parts, levels, maps, strict=True)]

    def draws(self, weights: Floats) -> dict[str, Floats]:
        """Return each metric for each row of ``weights`` ``[D, I]``; NaN where it is not defined.

        The mean of several classes is that of those for which it is defined.
        """
        return mean_of_classes(self.class_draws(weights))

    def class_draws(self, weights: Floats) -> list[dict[str, Floats]]:
        """Return what `draws` returns for each class alone."""
        return [one.draws(weights) for one in self._classes]


def mean_of_classes(draws: Sequence[dict[str, Floats]]) -> dict[str, Floats]:
    """Return the mean of each metric over the classes for which it is defined."""
    return {key: mean_of_known(np.stack([one[key] for one in draws])) for key in draws[0]}


class _OfOneClass:
    """The metrics of one class; see `Metrics`."""

    def __init__(self, results: Sequence[ImageResult], score_thresh: float, calibration: Calibration | None) -> None:
        self._rsna = rsna_scores(results, score_thresh)
        # Size ranges without a true box need no matching.
        sizes = np.concatenate([np.zeros(0), *(areas(result.truth) for result in results)])
        some = [area for area, (low, high) in AREA_RANGES.items() if ((sizes >= low) & (sizes <= high)).any()]
        self._rankings = {area: rank_detections(results, area) for area in {"all", *some}}
        self._scores, self._positive = image_scores(results), has_truth(results)
        self._alarm = self._scores > score_thresh
        self._probabilities = image_probabilities(results, calibration)
        self._raw = None if calibration is None else scores_before(results, calibration)

    def draws(self, weights: Floats) -> dict[str, Floats]:
        parts = [self._draws(weights[start : start + _AT_ONCE]) for start in range(0, len(weights), _AT_ONCE)]
        return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}

    def _draws(self, weights: Floats) -> dict[str, Floats]:
        counted = ~np.isnan(self._rsna)
        everything = self._rankings["all"]
        precision = average_precision(everything, weights)  # (D, T)
        sensitivity = froc(everything, weights)  # (D, rates)
        with np.errstate(invalid="ignore", divide="ignore"):
            metrics = {"rsna_score": (weights @ np.nan_to_num(self._rsna)) / (weights @ counted)}
            found, silent = weights @ (self._positive & self._alarm), weights @ ~(self._positive | self._alarm)
            metrics |= {"sensitivity": found / (weights @ self._positive), "ppv": found / (weights @ self._alarm)}
            metrics |= {"specificity": silent / (weights @ ~self._positive), "npv": silent / (weights @ ~self._alarm)}
        metrics |= {"map": precision.mean(1), "map_50": precision[:, 0], "map_75": precision[:, 5]}
        for area in ("small", "medium", "large"):
            ranking = self._rankings.get(area)
            each = average_precision(ranking, weights).mean(1) if ranking else np.full(len(weights), np.nan)
            metrics[f"map_{area}"] = each
        metrics |= {f"mar_{most}": average_recall(everything, weights, most) for most in (1, 10, MAX_DETECTIONS)}
        metrics["auroc"] = auroc(self._scores, self._positive, weights)
        metrics["average_precision"] = image_average_precision(self._scores, self._positive, weights)
        metrics["calibration_error"] = calibration_error(self._probabilities, self._positive, weights)
        if self._raw is not None:
            metrics["calibration_error_before"] = calibration_error(self._raw, self._positive, weights)
        metrics |= {f"froc_{rate:g}": sensitivity[:, column] for column, rate in enumerate(FROC_RATES)}
        return metrics | {"froc_mean": sensitivity.mean(1)}


def paired_difference(
    challenger: Metrics, champion: Metrics, groups: Sequence[str], draws: int, seed: int
) -> dict[str, tuple[float, float, float]]:
    """Return the challenger's metrics minus the champion's on the same images: value and 95 % interval.

    Both models are scored on the same drawn patients: difficulty that they share cancels out, and the
    interval of the difference is narrower than the two models' own intervals suggest.

    Returns:
        metric -> (difference, low, high); NaN where it is not defined.
    """
    images = len(groups)
    ones = np.ones((1, images))
    point, other = challenger.draws(ones), champion.draws(ones)
    weights = patient_weights(groups, draws, seed)
    drawn, others = challenger.draws(weights), champion.draws(weights)
    return {key: (float(point[key][0] - other[key][0]), *interval(drawn[key] - others[key])) for key in point}


def interval(values: Floats) -> tuple[float, float]:
    """Return the limits of the middle 95 % of the draws; NaN if no draw is defined."""
    known = values[~np.isnan(values)]
    if not len(known):
        return float("nan"), float("nan")
    low, high = np.percentile(known, (2.5, 97.5))
    return float(low), float(high)


def stable_threshold(results: Sequence[ImageResult], groups: Sequence[str], draws: int, seed: int) -> float:
    """Return the median of the best thresholds over draws of patients.

    The best threshold of a small split depends on single images; the median of many draws does not.
    """
    thresholds, scores = best_thresholds(results, patient_weights(groups, draws, seed))
    return float(np.median(thresholds[scores > 0])) if (scores > 0).any() else 1.0
