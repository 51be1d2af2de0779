"""The choice of the images that a reader should look at first."""

from collections.abc import Sequence

import numpy as np

from pipeline.evaluation.outcomes import alarms
from pipeline.metrics.results import ImageResult, Thresholds, has_truth, image_scores
from pipeline.metrics.rsna_score import image_rsna_scores


def pick_examples(results: Sequence[ImageResult], score_thresh: Thresholds, count: int) -> dict[str, list[int]]:
    """Pick the positions of the ``count`` best, middle and worst images, and of the surest mistakes.

    The images with boxes are ranked by their RSNA score: best, middle and worst. Misses are images with
    boxes and no reported detection, the lowest scores first; false alarms are images without boxes that
    have a reported detection, the highest scores first.
    """
    scores, image_score, positive = image_rsna_scores(results, score_thresh), image_scores(results), has_truth(results)
    alarm = alarms(results, score_thresh)
    candidates = np.flatnonzero(positive)
    ranked = candidates[np.argsort(-scores[candidates], kind="stable")]
    half = max(0, (len(ranked) - count) // 2)
    missed, false = np.flatnonzero(positive & ~alarm), np.flatnonzero(~positive & alarm)
    return {
        "Best": ranked[:count].tolist(),
        "Typical": ranked[half : half + count].tolist(),
        "Worst": ranked[::-1][:count].tolist(),
        "Misses": missed[np.argsort(image_score[missed], kind="stable")][:count].tolist(),
        "False alarms": false[np.argsort(-image_score[false], kind="stable")][:count].tolist(),
    }
