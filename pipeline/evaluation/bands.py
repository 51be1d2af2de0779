"""95 % bands around the curves of one class, from the curves of drawn patients."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from pipeline.metrics.bootstrap import patient_weights
from pipeline.metrics.ranking import rank_detections
from pipeline.metrics.results import Floats, ImageResult, has_truth, image_scores

_DRAWS = 400
_PLACES = 101
_AT_ONCE = 20  # draws per block: larger blocks only cost memory


def curve_bands(results: Sequence[ImageResult], groups: Sequence[str], seed: int) -> dict[str, pd.DataFrame]:
    """Return the bands of the curves ``precision_recall``, ``froc`` and ``roc``.

    Args:
        results: detections and true boxes of each image, of one class.
        groups: the patient of each image; patients are drawn with replacement.
        seed: seed of the draws.

    Returns:
        Of each curve, columns ``x``, ``low``, ``high``; no rows where the curve is not defined.
    """
    weights = patient_weights(groups, _DRAWS, seed)
    ranking = rank_detections(results)
    hits, truths = ranking.hit[0].astype(np.float64), ranking.truths.astype(np.float64)
    share, rate = np.linspace(0, 1, _PLACES), np.linspace(0, 8, _PLACES)
    precision, sensitivity = [], []
    for start in range(0, len(weights) if len(hits) and truths.any() else 0, _AT_ONCE):
        part = weights[start : start + _AT_ONCE]
        each = part[:, ranking.image]  # (D, N)
        found, chosen = np.cumsum(each * hits, 1), np.cumsum(each, 1)
        recall = found / np.maximum(part @ truths, 1)[:, None]
        false = (chosen - found) / len(results)
        precision += [_at(share, x, y) for x, y in zip(recall, found / np.maximum(chosen, 1), strict=True)]
        sensitivity += [_at(rate, x, y, last=True) for x, y in zip(false, recall, strict=True)]
    return {
        "precision_recall": _band(share, precision),
        "froc": _band(rate, sensitivity),
        "roc": _band(share, _roc_draws(results, weights, share)),
    }


def _at(places: Floats, x: Floats, y: Floats, *, last: bool = False) -> Floats:
    """Return a curve's ``y`` at ``places``: that of the first point at or beyond each, or of the last not beyond.

    Where the curve does not reach, it is 0.
    """
    if last:
        index = np.searchsorted(x, places, side="right") - 1
        return np.where(index >= 0, y[np.maximum(index, 0)], 0.0)
    index = np.searchsorted(x, places - 1e-9)
    return np.where(index < len(y), y[np.minimum(index, len(y) - 1)], 0.0)


def _roc_draws(results: Sequence[ImageResult], weights: Floats, places: Floats) -> list[Floats]:
    # Ranks, because the score of an image without detections is -inf.
    scores, positive = np.unique(image_scores(results), return_inverse=True)[1], has_truth(results)
    if positive.all() or not positive.any():
        return []
    order = np.argsort(-scores, kind="stable")
    ends = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))  # images of equal score are one step
    found = np.cumsum((weights * positive)[:, order], 1)[:, ends]
    false = np.cumsum((weights * ~positive)[:, order], 1)[:, ends]
    whole = (found[:, -1] > 0) & (false[:, -1] > 0)
    pairs = zip(false[whole] / false[whole, -1:], found[whole] / found[whole, -1:], strict=True)
    return [_at(places, x, y, last=True) for x, y in pairs]


def _band(places: Floats, draws: Sequence[Floats]) -> pd.DataFrame:
    if not draws:
        return pd.DataFrame({"x": [], "low": [], "high": []})
    low, high = np.percentile(np.stack(draws), (2.5, 97.5), axis=0)
    return pd.DataFrame({"x": places, "low": low, "high": high}).round(5)
