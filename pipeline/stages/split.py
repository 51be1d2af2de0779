"""Stage ``split``: the index of prepared studies -> which split each belongs to."""

import json
import logging
from pathlib import Path

import pandas as pd

from pipeline.data.shards import INDEX, read_index
from pipeline.data.splits import LEAKED, SPLITS, deal, kfold_shares, missing_classes, pick_leaked, require_no_leak
from pipeline.documents import parse_json, shown
from pipeline.errors import UserError, run_main
from pipeline.escaping import one_line
from pipeline.files import write_text
from pipeline.folder_lock import only_run_of
from pipeline.params import Params, load_params
from pipeline.stages.preprocess import PREPARED

logger = logging.getLogger(__name__)

SPLITS_FILE = Path("data/splits.csv")
_AGAIN = (
    f"`dvc checkout --force {SPLITS_FILE}` brings the recorded table back; once the file is removed,"
    " `dvc repro split` deals all patients anew"
)
_COLUMNS = ["patientId", "groupId", "part", "split", "rule"]
_STUDIES = "studies"


def split(params: Params, prepared: Path = PREPARED, target: Path = SPLITS_FILE) -> None:
    """Deal the prepared studies to train, val and test.

    Patients who were dealt before, by the same seed and shares, stay where they are: ``target`` is
    read before it is written, which is why DVC must not remove it.
    """
    index = read_index(prepared)
    if (index["groupId"] == index["patientId"]).all():
        logger.warning("no patient_groups.csv: each image counts as its own patient, which may leak between splits")
    section = params.split
    fractions = section.fractions.model_dump()
    shares = kfold_shares(fractions, section.folds) if section.folds else fractions
    rule: dict[str, float] = {"seed": params.seed, **shares}
    former = _former_parts(target, index, rule)
    parts = deal(index, shares, params.seed, former)
    names = parts.map(_split_of(shares, section.fold))
    if section.leaked:
        names = pick_leaked(index, names, round(section.leaked * len(index)), params.seed)
    require_no_leak(index, names)
    for line in missing_classes(index, names):
        logger.warning("%s; more studies or another split.fractions are needed", line)
    # Each line tells how many there are: a table that was cut off between two lines is known as damaged.
    table = index[["patientId", "groupId"]].assign(
        part=parts, split=names, rule=json.dumps({**rule, _STUDIES: len(index)})
    )
    write_text(target, table[_COLUMNS].to_csv(index=False))
    logger.info("splits: %s", ", ".join(f"{name} {count}" for name, count in names.value_counts().items()))


def _split_of(shares: dict[str, float], fold: int) -> dict[str, str]:
    """The split that each part is: of the folds, one is val and the others are train."""
    return {
        part: part if not part.startswith("fold") else "val" if part == f"fold{fold}" else "train" for part in shares
    }


def _former_parts(target: Path, index: pd.DataFrame, rule: dict[str, float]) -> dict[str, str]:
    """Cluster -> part, of the clusters that have a study or a patient of the former splits."""
    if not target.exists():
        return {}
    table = _read(target)
    if list(table.columns) != _COLUMNS or _rule_of(table, target) != rule:
        logger.warning("%s: of another seed, other shares or another version; all patients are dealt anew", target)
        return {}
    by_study = dict(zip(table["patientId"], table["part"], strict=True))
    by_patient = dict(zip(table["groupId"], table["part"], strict=True))
    parts: dict[str, str] = {}
    moved = 0
    for row in index.itertuples():
        part = by_study.get(str(row.patientId)) or by_patient.get(str(row.groupId))
        moved += part is not None and parts.setdefault(str(row.cluster), part) != part
    if moved:
        logger.warning("%d studies change their split: they turned out to be of a patient in another one", moved)
    new = index["cluster"].nunique() - len(parts)
    logger.info("%d patients stay in their splits, %d are new", len(parts), new)
    return parts


def _rule_of(table: pd.DataFrame, path: Path) -> dict[str, float]:
    """By which seed and shares a table was dealt.

    Raises:
        UserError: the table is damaged. Dealt anew, patients of test would come to train unsaid.
    """
    if table["rule"].nunique() != 1:
        raise UserError(f"{path}: damaged: its lines are not of one rule; {_AGAIN}")
    rule = parse_json(table["rule"].iloc[0], f"{path} line 2: rule")
    if not isinstance(rule, dict):
        raise UserError(f"{path} line 2: rule {shown(rule)}: must be a JSON object; {_AGAIN}")
    studies = rule.pop(_STUDIES, len(table))  # tables of older versions do not tell
    if studies != len(table):
        raise UserError(f"{path}: damaged: has {len(table)} studies of {shown(studies)}; {_AGAIN}")
    return rule


def read_splits(path: Path, index: pd.DataFrame) -> pd.Series:
    """The split of each row of ``index``.

    Raises:
        UserError: the file is missing or damaged, or is not of these studies.
    """
    if not path.exists():
        raise UserError(f"{path}: no such file; run `dvc repro split` first")
    table = _read(path)
    if list(table.columns) != _COLUMNS:
        raise UserError(f"{path}: must have the columns {', '.join(_COLUMNS)}; {_AGAIN}")
    for column, wrong, rule in (
        ("split", ~table["split"].isin([*SPLITS, LEAKED]), f"must be {', '.join(SPLITS)} or {LEAKED}"),
        ("patientId", table["patientId"].duplicated(), "must be there once"),
        ("patientId", ~table["patientId"].isin(index["patientId"]), f"is not in {PREPARED / INDEX}"),
    ):
        if wrong.any():
            row = int(wrong.to_numpy().argmax())
            raise UserError(f"{path} line {row + 2}: {column} {shown(table[column].iloc[row])}: {rule}; {_AGAIN}")
    splits = index["patientId"].map(dict(zip(table["patientId"], table["split"], strict=True)))
    if splits.isna().any():
        raise UserError(f"{path}: lacks study {index['patientId'][splits.isna()].iloc[0]}; {_AGAIN}")
    return splits


def _read(path: Path) -> pd.DataFrame:
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except ValueError as error:  # pandas' errors are ValueErrors, and so is text that is no UTF-8
        raise UserError(f"{path}: not a table: {one_line(str(error))}; {_AGAIN}") from None
    # The last line of a file that was cut off has fewer fields: pandas fills them up.
    return table.fillna("")


def main() -> None:
    """Run the stage on ``params.yaml``."""
    params = load_params()
    with only_run_of("split"):
        split(params)


if __name__ == "__main__":
    run_main(main)
