"""Whether new studies are like those that a model was validated on."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.stats import ks_2samp

from pipeline.evaluation.results import Floats

NUMBERS = ("grey_mean", "grey_std", "image_score")
KINDS = ("view", "findings")
_BINS = 10
_FLOOR = 1e-4  # of a bin's share: an empty one must not be worth infinity


@dataclass(frozen=True)
class Drift:
    """How far one feature has moved.

    Attributes:
        feature: a number, or a kind of studies.
        psi: population stability index; below .1 is usual, above .25 is a shift (Siddiqi 2006).
        ks: largest distance of the two distribution functions; None of kinds.
        p_value: of the Kolmogorov-Smirnov test; None of kinds.
        past: whether it is past its limits.
    """

    feature: str
    psi: float
    ks: float | None
    p_value: float | None
    past: bool


def measure_drift(reference: pd.DataFrame, new: pd.DataFrame, psi_limit: float, p_limit: float) -> list[Drift]:
    """Compare `NUMBERS` and `KINDS` of two tables of studies.

    A number is past its limits when its index is above ``psi_limit`` and the test's p-value below
    ``p_limit``: of few studies the index alone is large by chance. A kind, when its index is, and
    chance would seldom make it so large.
    """
    found = []
    for name in NUMBERS:
        old, now = (table[name].dropna().to_numpy(np.float64) for table in (reference, new))
        index, test = psi(*binned(old, now)), ks_2samp(old, now)
        past = index > psi_limit and float(test.pvalue) < p_limit
        found.append(Drift(name, index, float(test.statistic), float(test.pvalue), past))
    for name in KINDS:
        old_counts, new_counts = counts(reference[name], new[name])
        index = psi(old_counts, new_counts)
        found.append(Drift(name, index, None, None, index > max(psi_limit, chance(old_counts, new_counts))))
    return found


def psi(reference: Floats, new: Floats) -> float:
    """Population stability index of two histograms: the sum of (q - p) log(q / p) over their bins' shares."""
    p, q = (np.maximum(part / part.sum(), _FLOOR) for part in (reference, new))
    return float(((q - p) * np.log(q / p)).sum())


def chance(reference: Floats, new: Floats) -> float:
    """An index that chance seldom exceeds: twice its mean, (bins - 1) (1 / n + 1 / m), for samples of this size."""
    return float(2 * (len(reference) - 1) * (1 / reference.sum() + 1 / new.sum()))


def binned(reference: Floats, new: Floats) -> tuple[Floats, Floats]:
    """Counts of both in tenths of the reference; equal values are never parted."""
    edges = np.unique(np.quantile(reference, np.arange(1, _BINS) / _BINS))
    sides = (
        np.bincount(np.searchsorted(edges, part, side="right"), minlength=len(edges) + 1) for part in (reference, new)
    )
    old, now = (side.astype(np.float64) for side in sides)
    return old, now


def counts(reference: Sequence[object] | pd.Series, new: Sequence[object] | pd.Series) -> tuple[Floats, Floats]:
    """Counts of both in the kinds that either has."""
    old, now = (pd.Series(part).fillna("").astype(str).value_counts() for part in (reference, new))
    kinds = sorted(set(old.index) | set(now.index))
    first, second = (np.array([part.get(kind, 0) for kind in kinds], np.float64) for part in (old, now))
    return first, second
