"""95 % intervals by drawing patients with replacement: images of one patient are not independent."""

from collections.abc import Sequence

import numpy as np

from pipeline.evaluation.ranked import FROC_RATES, average_precision, froc, rank_detections
from pipeline.evaluation.results import Bools, Floats, ImageResult, has_truth, image_scores
from pipeline.evaluation.rsna_score import best_thresholds, rsna_scores


def patient_weights(groups: Sequence[str], draws: int, seed: int) -> Floats:
    """How often each image counts in each draw, ``[draws, images]``."""
    _, codes = np.unique(np.asarray(groups), return_inverse=True)
    patients = int(codes.max()) + 1
    rng = np.random.default_rng(seed)
    return np.asarray(rng.multinomial(patients, np.full(patients, 1 / patients), draws)[:, codes], np.float64)


def auroc(scores: Floats, positive: Bools, weights: Floats) -> Floats:
    """Area under the ROC curve for each row of ``weights`` ``[D, I]``; NaN without both kinds."""
    order = np.argsort(scores, kind="stable")
    starts = np.flatnonzero(np.append(True, np.diff(scores[order]) > 0))
    # Images of equal score form one step of the curve: half of their pairs are in order.
    positives = np.add.reduceat((weights * positive)[:, order], starts, 1)
    negatives = np.add.reduceat((weights * ~positive)[:, order], starts, 1)
    below = np.cumsum(negatives, 1) - negatives / 2
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray((positives * below).sum(1) / (positives.sum(1) * negatives.sum(1)))


def metric_draws(results: Sequence[ImageResult], score_thresh: float, weights: Floats) -> dict[str, Floats]:
    """Every metric for each row of ``weights`` ``[D, I]``."""
    scores = rsna_scores(results, score_thresh)
    counted = ~np.isnan(scores)
    ranking = rank_detections(results)
    precision = np.array([average_precision(ranking, row) for row in weights])  # (D, T)
    sensitivity = np.array([froc(ranking, row) for row in weights])  # (D, rates)
    with np.errstate(invalid="ignore"):
        draws = {"rsna_score": (weights @ np.nan_to_num(scores)) / (weights @ counted)}
    draws |= {"map": precision.mean(1), "map_50": precision[:, 0], "map_75": precision[:, 5]}
    draws["auroc"] = auroc(image_scores(results), has_truth(results), weights)
    return draws | {f"froc_{rate:g}": sensitivity[:, column] for column, rate in enumerate(FROC_RATES)}


def stable_threshold(results: Sequence[ImageResult], groups: Sequence[str], draws: int, seed: int) -> float:
    """The median of the best thresholds over draws of patients.

    The best threshold of a small split hangs on single images; the median of many draws does not.
    """
    thresholds, scores = best_thresholds(results, patient_weights(groups, draws, seed))
    return float(np.median(thresholds[scores > 0])) if (scores > 0).any() else 1.0
