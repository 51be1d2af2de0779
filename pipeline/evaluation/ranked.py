"""All detections of a set of images in one ranking: what AP, FROC and their intervals are made of."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.evaluation.coco import IOU_THRESHOLDS, MAX_DETECTIONS, RECALL_POINTS
from pipeline.evaluation.results import Bools, Floats, ImageResult, hits

# False positives per image at which FROC reports the sensitivity.
FROC_RATES = (0.125, 0.25, 0.5, 1, 2, 4, 8)


@dataclass(frozen=True)
class Ranking:
    """Detections of all images, best first.

    Attributes:
        scores: ``[N]``.
        image: which image each is of, ``[N]``.
        hit: whether it matches a box at each COCO IoU threshold, ``[T, N]``.
        truths: number of true boxes of each image, ``[I]``.
    """

    scores: Floats
    image: npt.NDArray[np.int64]
    hit: Bools
    truths: npt.NDArray[np.int64]


def rank_detections(results: Sequence[ImageResult]) -> Ranking:
    """Pool the detections of all images, at most 100 of each, as COCO does."""
    counts = [min(len(result.scores), MAX_DETECTIONS) for result in results]
    scores = np.concatenate(
        [np.zeros(0), *(result.scores[:count] for result, count in zip(results, counts, strict=True))]
    )
    image = np.repeat(np.arange(len(results)), counts)
    matched = [hits(result, IOU_THRESHOLDS, inclusive=True)[:, :MAX_DETECTIONS] for result in results]
    order = np.argsort(-scores, kind="stable")
    hit = np.concatenate([*matched, np.zeros((len(IOU_THRESHOLDS), 0), bool)], 1)
    truths = np.array([len(result.truth) for result in results], np.int64)
    return Ranking(scores[order], image[order], hit[:, order], truths)


def average_precision(ranking: Ranking, weights: Floats) -> Floats:
    """COCO's 101-point average precision at each IoU threshold ``[T]``, each image counted ``weights`` times."""
    true_positives, false_positives = _counts(ranking, weights)
    positives = float(weights @ ranking.truths)
    if not positives:
        return np.full(len(ranking.hit), np.nan)
    recall = true_positives / positives
    precision = true_positives / np.maximum(true_positives + false_positives, np.spacing(1))
    # The envelope: the best precision at this recall or a higher one.
    envelope = np.maximum.accumulate(precision[:, ::-1], 1)[:, ::-1]
    padded = np.concatenate([envelope, np.zeros((len(envelope), 1))], 1)
    places = [np.searchsorted(row, RECALL_POINTS, side="left") for row in recall]
    return np.array([row[place].mean() for row, place in zip(padded, places, strict=True)])


def froc(ranking: Ranking, weights: Floats) -> Floats:
    """Sensitivity (IoU at least .5) at each of ``FROC_RATES`` false positives per image."""
    true_positives, false_positives = (counts[0] for counts in _counts(ranking, weights))
    positives = float(weights @ ranking.truths)
    if not positives:
        return np.full(len(FROC_RATES), np.nan)
    rates = false_positives / weights.sum()
    sensitivity = np.append(0.0, true_positives / positives)
    return np.asarray(sensitivity[np.searchsorted(rates, FROC_RATES, side="right")])


def _counts(ranking: Ranking, weights: Floats) -> tuple[Floats, Floats]:
    """Weighted true and false positives among the first 1, 2, ... N detections, ``[T, N]`` each."""
    weight = weights[ranking.image]
    return np.cumsum(ranking.hit * weight, 1), np.cumsum(~ranking.hit * weight, 1)
