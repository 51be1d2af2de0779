"""Suppression, box shrink, calibration and score threshold, which turn candidates into reports; chosen on val alone."""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from pipeline.assembly.inputs import SplitData
from pipeline.assembly.validation import results_in_prepared_pixels
from pipeline.detection.postprocess import Detections, shrink
from pipeline.detection.settings import PostProcessing
from pipeline.errors import UserError
from pipeline.metrics.bootstrap import patient_weights, stable_threshold
from pipeline.metrics.calibration import Calibration, calibrated, fit_calibration
from pipeline.metrics.results import Floats, ImageResult, each_class, has_truth
from pipeline.metrics.risk_control import missed_patients, sensitive_threshold
from pipeline.metrics.rsna_score import best_thresholds
from pipeline.params import Params

logger = logging.getLogger(__name__)

# Detects on val's studies, in their order.
DetectOnVal = Callable[[PostProcessing], list[Detections]]

DRAWS = 500
_ERRORS = 2  # standard errors; chance seldom gives a larger gain


@dataclass(frozen=True)
class OperatingPoint:
    """The choices made on val; ``thresholds`` are of calibrated scores, and ``rule`` says how they were chosen.

    There are a calibration and a threshold for each class.
    """

    post_processing: PostProcessing
    calibrations: tuple[Calibration, ...]
    thresholds: tuple[float, ...]
    rule: str


def choose_operating_point(
    params: Params, detect_on_val: DetectOnVal, post_processing: PostProcessing, val_data: SplitData
) -> OperatingPoint:
    """Choose the post-processing in ``evaluate.candidates`` with the best RSNA score on val, and the threshold.

    Scores are means over classes and over draws of val's patients: the best on a small split depends on single images.
    For the same reason, the params' own values stay unless the gain is larger than twice its standard error.
    """
    groups = val_data.index["groupId"].to_list()
    weights = patient_weights(groups, DRAWS, params.seed)
    tried = [
        (chosen, results, _best_scores(results, weights, len(val_data.classes)))
        for chosen, results in _candidates(params, detect_on_val, post_processing, val_data)
    ]
    own = tried[0]
    best = max(tried, key=lambda one: float(one[2].mean()))
    gain = best[2] - own[2]
    chosen, results, _ = best if gain.mean() > _ERRORS * gain.std() else own
    logger.info(
        "val: %s %g, box_shrink %g; RSNA score %.3f, of the params' own values %.3f",
        chosen.overlap_key,
        getattr(chosen, chosen.overlap_key),
        chosen.box_shrink,
        best[2].mean() if chosen is best[0] else own[2].mean(),
        own[2].mean(),
    )
    each = each_class(results, len(val_data.classes))
    for name, of_class in zip(val_data.classes, each, strict=True):
        if not has_truth(of_class).any():
            logger.warning("val has no box of class %s; the model will report none", name)
    calibrations = tuple(fit_calibration(own, chosen.score_thresh) for own in each)
    scored = each_class([calibrated(result, calibrations) for result in results], len(each))
    return OperatingPoint(chosen, calibrations, *_thresholds(params, scored, groups, val_data.classes))


def _best_scores(results: list[ImageResult], weights: Floats, classes: int) -> Floats:
    """Return the RSNA score at the best threshold of each class, the mean over the classes, for each draw ``[D]``."""
    return np.asarray(np.mean([best_thresholds(own, weights)[1] for own in each_class(results, classes)], 0))


def _thresholds(
    params: Params, each: list[list[ImageResult]], groups: list[str], classes: Sequence[str]
) -> tuple[tuple[float, ...], str]:
    """Return the threshold of each class that ``evaluate.operating_point`` asks for, and a line about them.

    Raises:
        UserError: val cannot keep the promise of a sensitivity.
    """
    asked = params.evaluate.operating_point
    if asked == "best_rsna":
        return tuple(stable_threshold(own, groups, DRAWS, params.seed) for own in each), "best RSNA score on val"
    thresholds, missed = [], []
    for name, own in zip(classes, each, strict=True):
        of_class = "" if len(classes) == 1 else f" of class {name}"
        try:
            threshold = sensitive_threshold(own, groups, asked.sensitivity, asked.confidence)
        except UserError as error:
            raise UserError(f"{name}: {error}" if of_class else str(error)) from None
        thresholds.append(threshold)
        few, patients = missed_patients(own, groups, threshold)
        missed.append(f"{few} of {patients} patients{of_class} missed")
    certainty = f"confidence {asked.confidence:g}" if asked.confidence else "on average over vals like this one"
    rule = f"sensitivity {asked.sensitivity:g} by patient, {certainty}; on val {', '.join(missed)}"
    logger.info("operating point: %s", rule)
    return tuple(thresholds), rule


def _candidates(
    params: Params, detect_on_val: DetectOnVal, post_processing: PostProcessing, val_data: SplitData
) -> Iterator[tuple[PostProcessing, list[ImageResult]]]:
    """Yield each combination of values and its results on val; the params' own values come first."""
    listed = params.evaluate.candidates
    key = post_processing.overlap_key
    for value in dict.fromkeys((getattr(post_processing, key), *getattr(listed, key))):
        plain = replace(post_processing, **{key: value, "box_shrink": 0.0})
        detections = detect_on_val(plain)
        for share in dict.fromkeys((post_processing.box_shrink, *listed.box_shrink)):
            shrunk = [_shrunk(one, share) for one in detections]
            yield replace(plain, box_shrink=share), results_in_prepared_pixels(shrunk, val_data)


def _shrunk(detections: Detections, share: float) -> Detections:
    return {**detections, "boxes": shrink(detections["boxes"], share)}
