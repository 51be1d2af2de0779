"""The metrics of one split with their 95 % intervals: the content of ``reports/metrics.json``."""

from collections.abc import Mapping, Sequence

import numpy as np

from pipeline.metrics.bootstrap import Metrics, interval, mean_of_classes, patient_weights
from pipeline.metrics.calibration import Calibrations
from pipeline.metrics.results import Floats, ImageResult, Thresholds, each_class, has_truth, thresholds_of

Summary = dict[str, float | None]

# The metrics of single classes, if there are several.
OF_EACH_CLASS = (
    "rsna_score", "map", "map_50", "froc_mean", "auroc", "average_precision", "sensitivity", "specificity",
    "calibration_error",
)  # fmt: skip
COUNTS = ("images", "patients", "boxes")
MAIN_METRICS = ("rsna_score", "map", "map_50", "auroc")


def point_estimates(summary: Summary) -> list[str]:
    """Return the names of a summary's metrics without the ends of their intervals."""
    return [name for name in summary if not name.endswith(("_low", "_high"))]


def summarize(
    results: Sequence[ImageResult],
    groups: Sequence[str],
    score_thresh: Thresholds,
    draws: int,
    seed: int,
    calibration: Calibrations = None,
    classes: Sequence[str] = ("",),
) -> Summary:
    """Compute the metrics of a set of images.

    Args:
        results: detections and true boxes of each image.
        groups: the patient of each image.
        score_thresh: of each class; detections above it count for the RSNA score, sensitivity and specificity; -inf
            keeps all. The other metrics always use all detections.
        draws: number of bootstrap draws.
        seed: seed of the draws.
        calibration: of each class: the one that the scores went through; adds the calibration error before it.
        classes: the names of the classes.

    Returns:
        Each metric as ``<key>``, ``<key>_low`` and ``<key>_high``; None where it is not defined
        (for example without a true box); also the counts ``images``, ``patients``, ``boxes``, and ``score_thresh``.
        With several classes, these are means, and `OF_EACH_CLASS` of each class follow as ``<class>/<key>``, with the
        counts of its ``boxes`` and of ``images`` that have one, and its ``score_thresh``.
    """
    metrics, levels = Metrics(results, score_thresh, calibration), thresholds_of(score_thresh)
    points = metrics.class_draws(np.ones((1, len(results))))
    drawn = metrics.class_draws(patient_weights(groups, draws, seed))
    for point in points:
        point["rsna_score"] = np.nan_to_num(point["rsna_score"])  # 0, not undefined, where no image counts
    summary: Summary = {
        "images": len(results),
        "patients": len(set(groups)),
        "boxes": sum(len(result.truth) for result in results),
        "score_thresh": _finite(levels[0]) if len(levels) == 1 else None,
    }
    summary |= _with_intervals(mean_of_classes(points), mean_of_classes(drawn))
    if len(levels) == 1:
        return summary
    parts = zip(classes, each_class(results, len(levels)), levels, points, drawn, strict=True)
    for name, own, level, point, draw in parts:
        of_class: Summary = {
            "images": int(has_truth(own).sum()),
            "boxes": sum(len(result.truth) for result in own),
            "score_thresh": _finite(level),
        }
        of_class |= _with_intervals({key: point[key] for key in OF_EACH_CLASS}, draw)
        summary |= {f"{name}/{key}": value for key, value in of_class.items()}
    return summary


def _with_intervals(point: Mapping[str, Floats], drawn: Mapping[str, Floats]) -> Summary:
    """Return each metric's value and the ends of its interval, None where it is not defined."""
    summary: Summary = {}
    for name, value in point.items():
        low, high = interval(drawn[name])
        for key, number in ((name, float(value[0])), (f"{name}_low", low), (f"{name}_high", high)):
            summary[key] = None if np.isnan(number) else round(float(number), 6)
    return summary


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def inflation(leaked: Summary, clean: Summary) -> Summary:
    """Return the gain from a leak: the same model's scores on studies of train patients minus its scores on val."""
    gains: Summary = {}
    for key in MAIN_METRICS:
        seen, unseen = leaked[key], clean[key]
        gains[f"{key}_inflation"] = None if seen is None or unseen is None else seen - unseen
    return gains
