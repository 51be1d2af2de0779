"""Metrics of whole images: whether an image has an opacity, judged by the score of its best detection.

All metrics take ``scores`` ``[I]``, ``positive`` ``[I]``, and ``weights`` ``[D, I]``: how often each image counts.
"""

import numpy as np

from pipeline.metrics.results import Bools, Floats

CALIBRATION_BINS = 10


def auroc(scores: Floats, positive: Bools, weights: Floats) -> Floats:
    """Return the area under the ROC curve for each row of ``weights``, ``[D]``; NaN without positives or negatives."""
    order = np.argsort(scores, kind="stable")
    ranked = scores[order]
    starts = np.flatnonzero(np.append(True, ranked[1:] > ranked[:-1]))
    # Images of equal score form one step of the curve: half of their pairs count as in order.
    positives = np.add.reduceat((weights * positive)[:, order], starts, 1)
    negatives = np.add.reduceat((weights * ~positive)[:, order], starts, 1)
    below = np.cumsum(negatives, 1) - negatives / 2
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray((positives * below).sum(1) / (positives.sum(1) * negatives.sum(1)))


def image_average_precision(scores: Floats, positive: Bools, weights: Floats) -> Floats:
    """Return the average precision, the sum of precision x step in recall as in scikit-learn; NaN without positives."""
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    ends = np.flatnonzero(np.append(ranked[1:] < ranked[:-1], True))  # images of equal score enter together
    true_positives = np.cumsum((weights * positive)[:, order], 1)[:, ends]
    chosen = np.cumsum(weights[:, order], 1)[:, ends]
    steps = np.diff(true_positives, prepend=0)
    with np.errstate(invalid="ignore"):
        return np.asarray((steps * true_positives / np.maximum(chosen, 1)).sum(1) / true_positives[:, -1])


def calibration_error(scores: Floats, positive: Bools, weights: Floats) -> Floats:
    """Return the expected calibration error (Naeini et al. 2015): mean distance of scores from the share of positives.

    It is taken over ten bins of equal width between 0 and 1.
    """
    gaps = weights @ (_bins(scores) * (scores - positive)[:, None])  # (D, bins)
    return np.asarray(np.abs(gaps).sum(1) / weights.sum(1))


def reliability(scores: Floats, positive: Bools) -> tuple[Floats, Floats, Floats]:
    """Return the mean score, the share of positives and the number of images of each bin that has images."""
    bins = _bins(scores)
    images = bins.sum(0)
    some = images > 0
    return (scores @ bins)[some] / images[some], (positive @ bins)[some] / images[some], images[some]


def _bins(scores: Floats) -> Floats:
    """Return the bin of each score as a one-hot row, ``[I, bins]``."""
    number = np.clip((scores * CALIBRATION_BINS).astype(int), 0, CALIBRATION_BINS - 1)
    return np.asarray(np.eye(CALIBRATION_BINS)[number])
