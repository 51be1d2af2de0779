"""The metrics of one split with their 95 % intervals: the content of ``reports/metrics.json``."""

from collections.abc import Sequence

import numpy as np

from pipeline.metrics.bootstrap import Metrics, interval, patient_weights
from pipeline.metrics.calibration import Calibration
from pipeline.metrics.results import ImageResult
from pipeline.metrics.rsna_score import rsna_score

Summary = dict[str, float | None]

INFLATED = ("rsna_score", "map", "map_50", "auroc")


def summarize(
    results: Sequence[ImageResult],
    groups: Sequence[str],
    score_thresh: float,
    draws: int,
    seed: int,
    calibration: Calibration | None = None,
) -> Summary:
    """Compute the metrics of a set of images.

    Args:
        results: detections and true boxes of each image.
        groups: the patient of each image.
        score_thresh: detections above it count for the RSNA score, sensitivity and specificity; -inf keeps all.
            The other metrics always use all detections.
        draws: number of bootstrap draws.
        seed: seed of the draws.
        calibration: the calibration that the scores went through; adds the calibration error before it.

    Returns:
        Each metric as ``<key>``, ``<key>_low`` and ``<key>_high``; None where it is not defined
        (for example without a true box); also the counts ``images``, ``patients``, ``boxes``, and ``score_thresh``.
    """
    metrics = Metrics(results, score_thresh, calibration)
    point = {name: float(values[0]) for name, values in metrics.draws(np.ones((1, len(results)))).items()}
    point["rsna_score"] = rsna_score(results, score_thresh)  # 0, not undefined, where no image counts
    drawn = metrics.draws(patient_weights(groups, draws, seed))
    summary: Summary = {
        "images": len(results),
        "patients": len(set(groups)),
        "boxes": sum(len(result.truth) for result in results),
        "score_thresh": float(score_thresh) if np.isfinite(score_thresh) else None,
    }
    for name, value in point.items():
        low, high = interval(drawn[name])
        for key, number in ((name, value), (f"{name}_low", low), (f"{name}_high", high)):
            summary[key] = None if np.isnan(number) else round(float(number), 6)
    return summary


def inflation(leaked: Summary, clean: Summary) -> Summary:
    """Return the gain from a leak: the same model's scores on studies of train patients minus its scores on val."""
    gains: Summary = {}
    for key in INFLATED:
        seen, unseen = leaked[key], clean[key]
        gains[f"{key}_inflation"] = None if seen is None or unseen is None else seen - unseen
    return gains
