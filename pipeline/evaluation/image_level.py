"""Metrics of whole images: has it an opacity or not, as the score of its best detection says.

All take ``scores`` ``[I]``, ``positive`` ``[I]``, and ``weights`` ``[D, I]``: how often each image counts.
"""

import numpy as np

from pipeline.evaluation.results import Bools, Floats

CALIBRATION_BINS = 10


def auroc(scores: Floats, positive: Bools, weights: Floats) -> Floats:
    """Area under the ROC curve for each row of ``weights`` ``[D, I]``; NaN without both kinds."""
    order = np.argsort(scores, kind="stable")
    ranked = scores[order]
    starts = np.flatnonzero(np.append(True, ranked[1:] > ranked[:-1]))
    # Images of equal score form one step of the curve: half of their pairs are in order.
    positives = np.add.reduceat((weights * positive)[:, order], starts, 1)
    negatives = np.add.reduceat((weights * ~positive)[:, order], starts, 1)
    below = np.cumsum(negatives, 1) - negatives / 2
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray((positives * below).sum(1) / (positives.sum(1) * negatives.sum(1)))


def image_average_precision(scores: Floats, positive: Bools, weights: Floats) -> Floats:
    """Average precision, the sum of precision x step in recall (as scikit-learn has it); NaN without positives."""
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    ends = np.flatnonzero(np.append(ranked[1:] < ranked[:-1], True))  # images of equal score enter together
    true_positives = np.cumsum((weights * positive)[:, order], 1)[:, ends]
    chosen = np.cumsum(weights[:, order], 1)[:, ends]
    steps = np.diff(true_positives, prepend=0)
    with np.errstate(invalid="ignore"):
        return np.asarray((steps * true_positives / np.maximum(chosen, 1)).sum(1) / true_positives[:, -1])


def calibration_error(scores: Floats, positive: Bools, weights: Floats) -> Floats:
    """Expected calibration error (Naeini et al. 2015): how far scores are from the share of positives, on average.

    Over ten bins of equal width between 0 and 1. An image without detections has the score 0.
    """
    scores = _probabilities(scores)
    gaps = weights @ (_bins(scores) * (scores - positive)[:, None])  # (D, bins)
    return np.asarray(np.abs(gaps).sum(1) / weights.sum(1))


def reliability(scores: Floats, positive: Bools) -> tuple[Floats, Floats, Floats]:
    """Mean score and share of positives of each bin that has images, and how many it has."""
    scores = _probabilities(scores)
    bins = _bins(scores)
    images = bins.sum(0)
    some = images > 0
    return (scores @ bins)[some] / images[some], (positive @ bins)[some] / images[some], images[some]


def _probabilities(scores: Floats) -> Floats:
    return np.where(np.isneginf(scores), 0.0, scores)


def _bins(scores: Floats) -> Floats:
    """Which bin each score lies in, ``[I, bins]``."""
    place = np.clip((scores * CALIBRATION_BINS).astype(int), 0, CALIBRATION_BINS - 1)
    return np.asarray(np.eye(CALIBRATION_BINS)[place])
