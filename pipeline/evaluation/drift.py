"""Drift: how far new studies differ from those that a model was validated on."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.stats import ks_2samp

from pipeline.metrics.results import Floats

NUMBERS = ("grey_mean", "grey_std", "image_score")
KINDS = ("view", "findings")
_BINS = 10
_FLOOR = 1e-4  # smallest share of a bin: an empty bin must not make the index infinite


@dataclass(frozen=True)
class Drift:
    """The drift of one feature.

    Attributes:
        feature: one of `NUMBERS` or `KINDS`.
        psi: population stability index; below .1 is usual, above .25 is a shift (Siddiqi 2006).
        ks: largest distance between the two distribution functions; None for kinds.
        p_value: p-value of the Kolmogorov-Smirnov test; None for kinds.
        past: whether the feature is past its limits.
    """

    feature: str
    psi: float
    ks: float | None
    p_value: float | None
    past: bool


def measure_drift(reference: pd.DataFrame, new: pd.DataFrame, psi_limit: float, p_limit: float) -> list[Drift]:
    """Compare `NUMBERS` and `KINDS` of two tables of studies.

    A number is past its limits when its index is above ``psi_limit`` and the test's p-value is below
    ``p_limit``: with few studies the index alone is large by chance. A kind is past its limits when
    its index is above ``psi_limit`` and larger than chance would usually make it.
    """
    drifts = []
    for name in NUMBERS:
        old, now = (table[name].dropna().to_numpy(np.float64) for table in (reference, new))
        index, test = psi(*binned(old, now)), ks_2samp(old, now)
        past = index > psi_limit and float(test.pvalue) < p_limit
        drifts.append(Drift(name, index, float(test.statistic), float(test.pvalue), past))
    for name in KINDS:
        old_counts, new_counts = counts(reference[name], new[name])
        index = psi(old_counts, new_counts)
        drifts.append(Drift(name, index, None, None, index > max(psi_limit, chance(old_counts, new_counts))))
    return drifts


def psi(reference: Floats, new: Floats) -> float:
    """Return the population stability index of two histograms: the sum of (q - p) log(q / p) over the bins' shares."""
    p, q = (np.maximum(part / part.sum(), _FLOOR) for part in (reference, new))
    return float(((q - p) * np.log(q / p)).sum())


def chance(reference: Floats, new: Floats) -> float:
    """Return an index that chance seldom exceeds: twice its mean (bins - 1) (1 / n + 1 / m) at these sample sizes."""
    return float(2 * (len(reference) - 1) * (1 / reference.sum() + 1 / new.sum()))


def binned(reference: Floats, new: Floats) -> tuple[Floats, Floats]:
    """Count both samples in bins between the reference's deciles; equal values are always in one bin."""
    edges = np.unique(np.quantile(reference, np.arange(1, _BINS) / _BINS))
    sides = (
        np.bincount(np.searchsorted(edges, part, side="right"), minlength=len(edges) + 1) for part in (reference, new)
    )
    old, now = (side.astype(np.float64) for side in sides)
    return old, now


def counts(reference: Sequence[object] | pd.Series, new: Sequence[object] | pd.Series) -> tuple[Floats, Floats]:
    """Count both samples by kind, for each kind that occurs in either."""
    old, now = (pd.Series(part).fillna("").astype(str).value_counts() for part in (reference, new))
    kinds = sorted(set(old.index) | set(now.index))
    first, second = (np.array([part.get(kind, 0) for kind in kinds], np.float64) for part in (old, now))
    return first, second
