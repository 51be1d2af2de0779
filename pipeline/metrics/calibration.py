"""Calibration: a detection's score becomes the probability that its box is right, or that its image has an opacity.

Platt scaling (Platt 1999): a straight line on the logit of the score, with a positive slope. Isotonic regression fits
more shapes, but gives many detections the same score, which changes their ranking and so every ranking metric.
"""

import logging
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from pydantic.dataclasses import dataclass
from scipy.optimize import minimize
from scipy.special import expit, logit

from pipeline.bounds import CHECKED, Fraction, Positive
from pipeline.metrics.results import (
    Bools,
    Floats,
    ImageResult,
    each_class,
    has_truth,
    hits,
    image_result,
    image_scores,
)

logger = logging.getLogger(__name__)

_IOU = np.array([0.5])
_EPS = 1e-12  # scores of 0 and 1 have no finite logit
_LEAST_SLOPE = 1e-3
# The score of an image without a detection lies somewhere below the threshold of candidates.
_NO_BOX = 0.5


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class ScoreMap:
    """A strictly increasing map of scores: ``sigmoid(slope * logit(score) + intercept)``."""

    slope: Positive
    intercept: float

    def __call__(self, scores: Floats) -> Floats:
        """Map scores between 0 and 1, of any shape; the result is float64."""
        return np.asarray(expit(self.slope * _logit(scores) + self.intercept))

    def inverse(self, scores: Floats) -> Floats:
        """Return the scores that are mapped to ``scores``."""
        return np.asarray(expit((_logit(scores) - self.intercept) / self.slope))


IDENTITY = ScoreMap(slope=1.0, intercept=0.0)


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class Calibration:
    """The maps of a model.

    Attributes:
        box: from the network's score of a box to the probability that the box matches a true one at IoU .5.
        image: from the calibrated score of an image's best box to the probability that the image has an opacity.
        no_box: the calibrated score that stands for an image without any detection.
    """

    box: ScoreMap
    image: ScoreMap
    no_box: Fraction

    def image_probabilities(self, best: Floats) -> Floats:
        """Return the probabilities of images by their best calibrated scores; -inf: no detection."""
        return self.image(np.where(np.isneginf(best), self.no_box, best))


# A calibration for each class, or for the one class that there is; None: scores stay.
Calibrations = Calibration | None | Sequence[Calibration | None]


def fit_calibration(results: Sequence[ImageResult], score_thresh: float) -> Calibration:
    """Fit both maps to a split's detections, whose scores are the network's.

    Args:
        results: detections and true boxes of each image.
        score_thresh: the score that candidates had to exceed to become detections.
    """
    matched = [hits(result, _IOU)[0] for result in results]
    scores = np.concatenate([np.zeros(0), *(result.scores for result in results)])
    box = fit_map(scores, np.concatenate([np.zeros(0, bool), *matched]), "boxes")
    no_box = float(box(np.array(_NO_BOX * score_thresh)))
    best = image_scores(results)
    calibrated = np.where(np.isneginf(best), no_box, box(np.where(np.isneginf(best), 0.5, best)))
    return Calibration(box=box, image=fit_map(calibrated, has_truth(results), "images"), no_box=no_box)


def fit_map(scores: Floats, positive: Bools, what: str) -> ScoreMap:
    """Fit a map to scores ``[N]`` and whether each was right ``[N]``; the identity if they do not suffice.

    As in Platt 1999, the targets are (N+ + 1) / (N+ + 2) and 1 / (N- + 2) instead of 1 and 0, so that few or perfectly
    separated examples do not give a slope without end.
    """
    positives = int(positive.sum())
    negatives = len(positive) - positives
    if not positives or not negatives:
        logger.warning("calibration of %s: val has %d right and %d wrong ones; scores stay", what, positives, negatives)
        return IDENTITY
    target = np.where(positive, (positives + 1) / (positives + 2), 1 / (negatives + 2))
    z = _logit(scores)

    def loss(line: Floats) -> tuple[float, Floats]:
        value = line[0] * z + line[1]
        error = expit(value) - target
        return float((np.logaddexp(0, value) - target * value).mean()), np.array([(error * z).mean(), error.mean()])

    bounds = [(_LEAST_SLOPE, None), (None, None)]
    found = minimize(loss, np.array([1.0, 0.0]), jac=True, method="L-BFGS-B", bounds=bounds)
    slope, intercept = (float(value) for value in found.x)
    if not np.isfinite(found.x).all() or slope <= _LEAST_SLOPE:
        logger.warning("calibration of %s: higher scores are not right more often; scores stay", what)
        return IDENTITY
    return ScoreMap(slope=slope, intercept=intercept)


def calibrated(result: ImageResult, calibrations: Calibrations) -> ImageResult:
    """Return the image's result with calibrated scores, in the order that these have."""
    scores = calibrated_scores(result, calibrations)
    if len(calibrations_of(calibrations)) == 1:
        return replace(result, scores=scores)
    # The maps of different classes may swap two detections.
    return image_result(result.boxes, scores, result.truth, result.labels, result.truth_labels)


def calibrated_scores(result: ImageResult, calibrations: Calibrations) -> Floats:
    """Return the calibrated scores of the image's detections, ``[N]``, in the order that the result has."""
    each = calibrations_of(calibrations)
    if len(each) == 1:
        return result.scores if each[0] is None else each[0].box(result.scores)
    scores = result.scores.copy()
    for label, calibration in enumerate(each):
        own = result.labels == label
        scores[own] = scores[own] if calibration is None else calibration.box(scores[own])
    return scores


def calibrations_of(calibrations: Calibrations) -> tuple[Calibration | None, ...]:
    """Return the calibration of each class."""
    return tuple(calibrations) if isinstance(calibrations, Sequence) else (calibrations,)


def image_probabilities_of(result: ImageResult, calibrations: Calibrations) -> Floats:
    """Return the probability that an image shows each class, ``[K]``; see `image_probabilities`."""
    each = calibrations_of(calibrations)
    parts = zip(each_class([result], len(each)), each, strict=True)
    return np.array([image_probabilities(part, calibration)[0] for part, calibration in parts])


def image_probabilities(results: Sequence[ImageResult], calibration: Calibration | None) -> Floats:
    """Return the probability of each image, ``[I]``; without calibration, the score of its best detection, or 0."""
    return (
        scores_before(results, None) if calibration is None else calibration.image_probabilities(image_scores(results))
    )


def scores_before(results: Sequence[ImageResult], calibration: Calibration | None) -> Floats:
    """Return each image's score before calibration, ``[I]``: the network's for its best detection, or 0."""
    best = image_scores(results)
    raw = best if calibration is None else calibration.box.inverse(np.where(np.isneginf(best), 0.5, best))
    return np.where(np.isneginf(best), 0.0, raw)


def _logit(scores: Floats) -> Floats:
    return np.asarray(logit(np.clip(np.asarray(scores, np.float64), _EPS, 1 - _EPS)))
