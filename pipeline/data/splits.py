"""Deal studies to train, val and test: stratified by class and view, whole patients only."""

import warnings
from collections.abc import Mapping

import numpy as np
import pandas as pd
from sklearn.model_selection import StratifiedGroupKFold

from pipeline.errors import UserError

SPLITS = ("train", "val", "test")
MAX_FOLDS = 20


def split_studies(studies: pd.DataFrame, fractions: Mapping[str, float], seed: int) -> pd.Series:
    """The split of each study.

    Folds that hold whole patients and equal shares of each (class, view) pair are dealt to the
    splits; hence fractions are multiples of 1/20.

    Args:
        studies: columns ``groupId``, ``class``, ``view``.
        fractions: share of each of ``train``, ``val`` and ``test``.
        seed: which of the many such splits.

    Returns:
        ``train``, ``val`` or ``test`` per row, on the index of ``studies``.

    Raises:
        UserError: there are too few patients or studies for the folds.
    """
    folds = _fold_count(fractions)
    patients = studies["groupId"].nunique()
    if patients < folds:
        raise UserError(f"split.fractions: {folds} folds need as many patients, the data set has {patients}")
    strata = studies["class"] + "/" + studies["view"]
    folder = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    result = pd.Series("", index=studies.index, name="split")
    owner = [name for name in SPLITS for _ in range(round(fractions[name] * folds))]
    with warnings.catch_warnings():
        # A stratum of fewer studies than folds cannot be in every fold; it is dealt as evenly as it goes.
        warnings.filterwarnings("ignore", "The least populated class")
        try:
            dealt = [members for _, members in folder.split(studies, strata, studies["groupId"])]
        except ValueError as error:
            raise UserError(f"split.fractions: {len(studies)} studies are too few for {folds} folds: {error}") from None
    for name, members in zip(owner, dealt, strict=True):
        result.iloc[members] = name
    return result


def _fold_count(fractions: Mapping[str, float]) -> int:
    """The fewest folds (at most 20) of which each split takes a whole number."""
    for folds in range(len(SPLITS), MAX_FOLDS + 1):
        parts = np.array([fractions[name] * folds for name in SPLITS])
        if np.allclose(parts, np.round(parts)) and parts.round().min() >= 1:
            return folds
    raise UserError(f"split.fractions: {dict(fractions)} are not multiples of 0.05")


def require_no_leak(studies: pd.DataFrame, split: pd.Series) -> None:
    """Stop when a patient is in two splits or a split is empty.

    Raises:
        UserError: the patient and its splits.
    """
    spread = split.groupby(studies["groupId"]).nunique()
    if (spread > 1).any():
        raise UserError(f"patient {spread.idxmax()} is in {int(spread.max())} splits; a patient belongs to one")
    for name in SPLITS:
        if not (split == name).any():
            raise UserError(f"split {name} is empty; more studies or another split.fractions are needed")
