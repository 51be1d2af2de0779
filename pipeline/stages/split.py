"""Stage ``split``: the index of prepared studies -> the split of each study."""

import argparse
import json
import logging
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from pipeline.data.assign_splits import assign_splits, kfold_shares, missing_classes, pick_leaked
from pipeline.data.prepared import read_index
from pipeline.data.prepared_tables import GIVEN, GIVEN_SPLIT
from pipeline.data.splits import AGAIN, COLUMNS, read_splits_table, require_no_leak
from pipeline.documents import parse_json, shown
from pipeline.errors import UserError, run_main
from pipeline.files import write_text
from pipeline.folder_lock import only_run_of
from pipeline.params import Params, load_params
from pipeline.paths import PREPARED, SPLITS_FILE

logger = logging.getLogger(__name__)

_STUDIES = "studies"


def split(params: Params, prepared: Path = PREPARED, target: Path = SPLITS_FILE) -> None:
    """Assign the prepared studies to train, val and test.

    Patients who were assigned before, by the same seed and shares, stay in their split. For this, ``target``
    is read before it is written, so DVC must not remove it.
    """
    index = read_index(prepared)
    if (index["groupId"] == index["patientId"]).all():
        logger.warning("no patient_groups.csv: each image counts as its own patient, which may leak between splits")
    section = params.split
    fractions = section.fractions.model_dump()
    shares = kfold_shares(fractions, section.folds) if section.folds else fractions
    rule: dict[str, float] = {"seed": params.seed, **shares}
    former = _former_parts(target, index, rule)
    given = index[GIVEN_SPLIT] if GIVEN_SPLIT in index else pd.Series("", index.index)
    _require_whole(index, given, section.shared_patients)
    parts = _deal(index, shares, params.seed, former, given)
    if section.shared_patients == "allow":
        parts = parts.where(given == "", given)
    names = parts.map(_split_of(shares, section.fold))
    if section.leaked:
        names = pick_leaked(index, names, round(section.leaked * len(index)), params.seed)
    require_no_leak(index, names, shared_patients=section.shared_patients == "allow")
    for line in missing_classes(index, names):
        logger.warning("%s; more studies or another split.fractions are needed", line)
    # Each line holds the number of studies, so that a table cut off between two lines is known to be damaged.
    table = index[["patientId", "groupId"]].assign(
        part=parts, split=names, rule=json.dumps({**rule, _STUDIES: len(index)})
    )
    write_text(target, table[COLUMNS].to_csv(index=False))
    logger.info("splits: %s", ", ".join(f"{name} {count}" for name, count in names.value_counts().items()))


def _require_whole(index: pd.DataFrame, given: pd.Series, shared_patients: str) -> None:
    """Refuse a given split that puts a patient, or copies of an image, into two; if that is allowed, warn.

    Raises:
        UserError: the message names a patient and the splits.
    """
    named = given[given != ""]
    each = named.groupby(index["cluster"][named.index]).unique()
    torn = each[each.map(len) > 1]
    if not len(torn):
        return
    first = f"{GIVEN}: patient {torn.index[0]} is in {' and '.join(sorted(torn.iloc[0]))}"
    if shared_patients == "refuse":
        rule = "a patient must be in one; split.shared_patients: allow accepts them, and the report says so"
        raise UserError(f"{first} ({len(torn)} such patients); {rule}")
    logger.warning("%s, and %d more are in several: scores are too good", first, len(torn) - 1)


def _deal(
    index: pd.DataFrame, shares: Mapping[str, float], seed: int, former: Mapping[str, str], given: pd.Series
) -> pd.Series:
    """Return each study's part: patients with a given split go there, the others are dealt.

    With folds, the studies that are given to train or val are dealt to the folds.
    """
    named = given[given != ""]
    firsts = named.groupby(index["cluster"][named.index]).first()
    fixed = {str(cluster): str(part) for cluster, part in firsts.items()}
    known: dict[str, str] = {**former, **{cluster: part for cluster, part in fixed.items() if part in shares}}
    outside_test = {cluster for cluster, part in fixed.items() if part not in shares}
    if outside_test:
        rows = index["cluster"].isin(outside_test)
        folds = {part: share / (1 - shares["test"]) for part, share in shares.items() if part != "test"}
        dealt = assign_splits(index[rows], folds, seed, known)
        known |= dict(zip(index["cluster"][rows], dealt, strict=True))
    return assign_splits(index, shares, seed, known)


def _split_of(shares: dict[str, float], fold: int) -> dict[str, str]:
    """Map each part to its split: one of the folds is val, and the other folds are train."""
    return {
        part: part if not part.startswith("fold") else "val" if part == f"fold{fold}" else "train" for part in shares
    }


def _former_parts(target: Path, index: pd.DataFrame, rule: dict[str, float]) -> dict[str, str]:
    """Map each cluster that has a study or a patient of the former splits to its part."""
    if not target.exists():
        return {}
    table = read_splits_table(target)
    if list(table.columns) != COLUMNS or _rule_of(table, target) != rule:
        logger.warning(
            "%s: made with another seed, other shares or another version; all patients are assigned anew", target
        )
        return {}
    by_study = dict(zip(table["patientId"], table["part"], strict=True))
    by_patient = dict(zip(table["groupId"], table["part"], strict=True))
    if not by_study.keys() & set(index["patientId"]):
        # Numbers such as 1, 2, 3 name patients in many data sets.
        logger.warning("%s: of other data, none of whose studies is here; all patients are assigned anew", target)
        return {}
    parts: dict[str, str] = {}
    moved = 0
    for row in index.itertuples():
        part = by_study.get(str(row.patientId)) or by_patient.get(str(row.groupId))
        moved += part is not None and parts.setdefault(str(row.cluster), part) != part
    if moved:
        logger.warning("%d studies change their split: they belong to a patient in another one", moved)
    new = index["cluster"].nunique() - len(parts)
    logger.info("%d patients stay in their splits, %d are new", len(parts), new)
    return parts


def _rule_of(table: pd.DataFrame, path: Path) -> dict[str, float]:
    """Return the seed and shares by which a table was made.

    Raises:
        UserError: the table is damaged. If all were assigned anew, patients could silently move from test to train.
    """
    if table["rule"].nunique() != 1:
        raise UserError(f"{path}: damaged: its lines do not name one rule; {AGAIN}")
    rule = parse_json(table["rule"].iloc[0], f"{path} line 2: rule")
    if not isinstance(rule, dict):
        raise UserError(f"{path} line 2: rule {shown(rule)}: must be a JSON object; {AGAIN}")
    studies = rule.pop(_STUDIES, len(table))  # tables of older versions do not have it
    if studies != len(table):
        raise UserError(f"{path}: damaged: has {len(table)} of {shown(studies)} studies; {AGAIN}")
    return rule


def main() -> None:
    """Run the stage on ``params.yaml``."""
    argparse.ArgumentParser(prog="python -m pipeline.stages.split", description=__doc__).parse_args()
    params = load_params()
    with only_run_of("split"):
        split(params)


if __name__ == "__main__":
    run_main(main)
