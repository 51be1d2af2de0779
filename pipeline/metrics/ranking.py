"""One ranking of all detections of a set of images, from which AP, FROC and their intervals are computed.

The metrics take weights ``[D, I]``: how often each image counts in each of D draws.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.metrics.matching import AREA_RANGES, IOU_THRESHOLDS, MAX_DETECTIONS, match
from pipeline.metrics.results import Bools, Floats, ImageResult

# The same floats as in pycocotools: ten of them are not exactly k / 100, and its results depend on that (7 of 20 boxes
# do not reach its .35).
RECALL_POINTS = np.linspace(0, 1, 101)
# False positives per image at which FROC reports the sensitivity.
FROC_RATES = (0.125, 0.25, 0.5, 1, 2, 4, 8)


@dataclass(frozen=True)
class Ranking:
    """Detections of all images, best first.

    Attributes:
        scores: ``[N]``.
        image: index of each detection's image, ``[N]``.
        rank: rank of each detection among those of its image, ``[N]``.
        hit: whether it matches a box at each COCO IoU threshold, ``[T, N]``.
        miss: whether it is a false positive, ``[T, N]``; a detection that is neither does not count.
        truths: number of true boxes of each image, ``[I]``.
    """

    scores: Floats
    image: npt.NDArray[np.int64]
    rank: npt.NDArray[np.int64]
    hit: Bools
    miss: Bools
    truths: npt.NDArray[np.int64]


def rank_detections(results: Sequence[ImageResult], area: str = "all") -> Ranking:
    """Pool the detections of all images, at most 100 of each, as COCO does."""
    counts = [min(len(result.scores), MAX_DETECTIONS) for result in results]
    scores = np.concatenate(
        [np.zeros(0), *(result.scores[:count] for result, count in zip(results, counts, strict=True))]
    )
    image = np.repeat(np.arange(len(results)), counts)
    rank = np.concatenate([np.zeros(0, np.int64), *(np.arange(count) for count in counts)])
    matches = [match(result, AREA_RANGES[area]) for result in results]
    order = np.argsort(-scores, kind="stable")
    none = np.zeros((len(IOU_THRESHOLDS), 0), bool)
    hit = np.concatenate([none, *(one.hit for one in matches)], 1)[:, order]
    miss = np.concatenate([none, *(one.miss for one in matches)], 1)[:, order]
    truths = np.array([one.truths for one in matches], np.int64)
    return Ranking(scores[order], image[order], rank[order], hit, miss, truths)


def average_precision(ranking: Ranking, weights: Floats) -> Floats:
    """Return COCO's 101-point average precision at each IoU threshold, ``[D, T]``; NaN in draws without a true box."""
    positives = weights @ ranking.truths  # (D,)
    averages = np.zeros((len(weights), len(ranking.hit)))
    # Only detections up to the last hit matter.
    last = np.flatnonzero(ranking.hit.any(0))[-1:].sum()
    detections = _running(ranking, slice(last + 1), weights)  # (N, D)
    for column, (hit, miss) in enumerate(zip(ranking.hit, ranking.miss, strict=True)):
        hits = np.flatnonzero(hit)
        if not len(hits):
            continue
        # Only hits are evaluated, because recall rises and precision peaks at hits.
        true_positives = _running(ranking, hits, weights)  # (P, D)
        uncounted = _sum_before(ranking, np.flatnonzero(~hit & ~miss), hits, weights)
        precision = true_positives / np.maximum(detections[hits] - uncounted, np.spacing(1))
        # The envelope: the best precision at this recall or a higher one.
        envelope = np.maximum.accumulate(precision[::-1])[::-1]
        averages[:, column] = _mean_at_recalls((true_positives / np.maximum(positives, 1)).T, envelope.T)
    averages[positives == 0] = np.nan
    return averages


def _sum_before(
    ranking: Ranking, which: npt.NDArray[np.int64], positions: npt.NDArray[np.int64], weights: Floats
) -> Floats | float:
    """Sum the weights of the detections ``which`` that come before each of ``positions``, ``[P, D]``."""
    if not len(which):
        return 0.0
    padded = np.pad(_running(ranking, which, weights), ((1, 0), (0, 0)))
    return np.asarray(padded[np.searchsorted(which, positions)])


def _running(ranking: Ranking, which: npt.NDArray[np.int64] | slice, weights: Floats) -> npt.NDArray[np.float32]:
    """Return the running sum of the weights of ``which``, ``[P, D]``; exact, because they are whole numbers."""
    counts = np.ascontiguousarray(weights.T, np.float32)[ranking.image[which]]
    return np.cumsum(counts, 0, out=counts)


def _mean_at_recalls(recall: Floats, envelope: Floats) -> Floats:
    """Return the mean of the envelope ``[D, P]`` at the recall points, ``[D]``; 0 counts where no hit reaches one."""
    padded = np.concatenate([envelope, np.zeros((len(envelope), 1))], 1)
    # Index of the hit that reaches each recall point: the number of hits with less recall.
    reaching = np.empty((len(recall), len(RECALL_POINTS)), np.intp)
    for row, have in zip(reaching, np.ascontiguousarray(recall), strict=True):
        row[:] = have.searchsorted(RECALL_POINTS)
    return np.asarray(np.take_along_axis(padded, reaching, 1).mean(1))


def average_recall(ranking: Ranking, weights: Floats, most: int) -> Floats:
    """Return the share of true boxes that the ``most`` best detections of their image hit, mean over IoU, ``[D]``."""
    kept = ranking.hit & (ranking.rank < most)
    each = np.bincount(ranking.image, kept.mean(0), len(ranking.truths))
    positives = weights @ ranking.truths
    with np.errstate(invalid="ignore"):
        return np.asarray((weights @ each) / positives)


def froc(ranking: Ranking, weights: Floats) -> Floats:
    """Return the sensitivity (IoU at least .5) at each of ``FROC_RATES`` false positives per image, ``[D, rates]``."""
    hit, miss = np.flatnonzero(ranking.hit[0]), np.flatnonzero(ranking.miss[0])
    true_positives = np.pad(_running(ranking, hit, weights), ((1, 0), (0, 0))).T  # (D, P + 1)
    false_positives = np.ascontiguousarray(_running(ranking, miss, weights).T)
    allowed = np.asarray(FROC_RATES) * weights.sum(1)[:, None]  # (D, rates)
    positives = weights @ ranking.truths
    sensitivities = np.full(allowed.shape, np.nan)
    for row in np.flatnonzero(positives):
        # All hits before the first false positive beyond the allowed number.
        first = np.searchsorted(false_positives[row], allowed[row], side="right")
        before = np.searchsorted(hit, np.append(miss, len(ranking.image))[first])
        sensitivities[row] = true_positives[row, before] / positives[row]
    return sensitivities
