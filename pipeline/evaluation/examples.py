"""Which images a reader should look at first."""

from collections.abc import Sequence

import numpy as np

from pipeline.evaluation.results import ImageResult, has_truth, image_scores
from pipeline.evaluation.rsna_score import rsna_scores


def pick_examples(results: Sequence[ImageResult], score_thresh: float, count: int) -> dict[str, list[int]]:
    """Positions of the ``count`` best, middle and worst images, and of the loudest false alarms.

    Best, middle and worst are by the image's RSNA score among the images with boxes.
    """
    scores = rsna_scores(results, score_thresh)
    positive = np.flatnonzero(has_truth(results))
    ranked = positive[np.argsort(-scores[positive], kind="stable")]
    half = max(0, (len(ranked) - count) // 2)
    alarms = np.flatnonzero(~has_truth(results) & (image_scores(results) > score_thresh))
    loudest = alarms[np.argsort(-image_scores(results)[alarms], kind="stable")]
    return {
        "Best": ranked[:count].tolist(),
        "Typical": ranked[half : half + count].tolist(),
        "Worst": ranked[::-1][:count].tolist(),
        "False alarms": loudest[:count].tolist(),
    }
