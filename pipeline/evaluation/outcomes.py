"""Outcomes at the operating threshold: of each image, of each true box, and counted."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.metrics.results import (
    Bools,
    Floats,
    ImageResult,
    Thresholds,
    each_class,
    has_truth,
    keep,
    pairwise_iou,
    reported,
    thresholds_of,
)


@dataclass(frozen=True)
class Outcomes:
    """Numbers of images by whether they have a box (positive) and whether any detection is reported (alarm)."""

    true_positives: int
    false_positives: int
    false_negatives: int
    true_negatives: int


def alarms(results: Sequence[ImageResult], thresholds: Thresholds) -> Bools:
    """Return whether each image has a detection above the threshold of its class, ``[I]``."""
    return np.array([bool(reported(result, thresholds).any()) for result in results], bool)


def count_outcomes(results: Sequence[ImageResult], thresholds: Thresholds) -> Outcomes:
    """Count the images of each outcome; with several classes, a box or a detection of any class counts."""
    positive, alarm = has_truth(results), alarms(results, thresholds)
    pairs = ((positive & alarm), (~positive & alarm), (positive & ~alarm), (~positive & ~alarm))
    return Outcomes(*(int(chosen.sum()) for chosen in pairs))


def best_overlaps(results: Sequence[ImageResult], thresholds: Thresholds) -> Floats:
    """Return the largest IoU of each true box with a reported detection of its class, ``[M]``; 0 if there is none."""
    levels = thresholds_of(thresholds)
    parts = zip(each_class(results, len(levels)), levels, strict=True)
    kept = [keep(result, result.scores > level) for part, level in parts for result in part]
    return np.concatenate([np.zeros(0), *(_best(result) for result in kept if len(result.truth))])


def _best(result: ImageResult) -> Floats:
    if not len(result.boxes):
        return np.zeros(len(result.truth))
    return np.asarray(pairwise_iou(result.boxes, result.truth).max(0), np.float64)
