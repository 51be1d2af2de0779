"""Suppression, box shrink, calibration and score threshold, which turn candidates into reports; chosen on val alone."""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from pipeline.assembly.inputs import SplitData
from pipeline.assembly.validation import results_in_prepared_pixels
from pipeline.detection.postprocess import Detections, shrink
from pipeline.detection.settings import PostProcessing
from pipeline.metrics.bootstrap import patient_weights, stable_threshold
from pipeline.metrics.calibration import Calibration, calibrated, fit_calibration
from pipeline.metrics.results import ImageResult
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
    """The choices made on val; ``threshold`` is one of calibrated scores, and ``rule`` says how it was chosen."""

    post_processing: PostProcessing
    calibration: Calibration
    threshold: float
    rule: str


def choose_operating_point(
    params: Params, detect_on_val: DetectOnVal, post_processing: PostProcessing, val_data: SplitData
) -> OperatingPoint:
    """Choose the post-processing in ``evaluate.candidates`` with the best RSNA score on val, and the threshold.

    Scores are means over draws of val's patients, because the best on a small split depends on single images.
    For the same reason, the params' own values stay unless the gain is larger than twice its standard error.
    """
    groups = val_data.index["groupId"].to_list()
    weights = patient_weights(groups, DRAWS, params.seed)
    tried = [
        (chosen, results, best_thresholds(results, weights)[1])
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
    calibration = fit_calibration(results, chosen.score_thresh)
    scored = [calibrated(result, calibration) for result in results]
    return OperatingPoint(chosen, calibration, *_threshold(params, scored, groups))


def _threshold(params: Params, results: list[ImageResult], groups: list[str]) -> tuple[float, str]:
    """Return the threshold that ``evaluate.operating_point`` asks for, and a line about it.

    Raises:
        UserError: val cannot keep the promise of a sensitivity.
    """
    asked = params.evaluate.operating_point
    if asked == "best_rsna":
        return stable_threshold(results, groups, DRAWS, params.seed), "best RSNA score on val"
    threshold = sensitive_threshold(results, groups, asked.sensitivity, asked.confidence)
    missed, patients = missed_patients(results, groups, threshold)
    certainty = f"confidence {asked.confidence:g}" if asked.confidence else "on average over vals like this one"
    rule = f"sensitivity {asked.sensitivity:g} by patient, {certainty}; on val {missed} of {patients} patients missed"
    logger.info("operating point: %s", rule)
    return threshold, rule


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
