"""The split of each study: ``data/splits.csv``, which its readers check."""

from pathlib import Path

import pandas as pd

from pipeline.data.prepared import INDEX
from pipeline.documents import shown
from pipeline.errors import UserError
from pipeline.escaping import one_line
from pipeline.paths import PREPARED, SPLITS_FILE

SPLITS = ("train", "val", "test")
# Studies of train patients that are kept out of training, to measure the effect of a leak.
LEAKED = "leaked"
AGAIN = (
    f"`dvc checkout --force {SPLITS_FILE}` brings the recorded table back; once the file is removed,"
    " `dvc repro split` assigns all patients anew"
)
FOLD = "fold"  # the parts of the table are val, test and train, or test, fold0, fold1 and so on
COLUMNS = ["patientId", "groupId", "part", "split", "rule"]


def require_no_leak(studies: pd.DataFrame, split: pd.Series, *, shared_patients: bool = False) -> None:
    """Stop when a patient or a cluster is in two splits, or when a split is empty.

    ``leaked`` studies belong to train patients on purpose; with ``shared_patients``, any patient may be in several.

    Raises:
        UserError: the message names the patient and the number of its splits, or the empty split.
    """
    whole = split.replace(LEAKED, "train")
    for column in () if shared_patients else ("groupId", "cluster"):
        spread = whole.groupby(studies[column]).nunique()
        if (spread > 1).any():
            raise UserError(f"patient {spread.idxmax()} is in {int(spread.max())} splits; a patient must be in one")
    for name in SPLITS:
        if not (split == name).any():
            raise UserError(f"split {name} is empty; more studies or another split.fractions are needed")


def read_splits(path: Path, index: pd.DataFrame, fold: int | None = None) -> pd.Series:
    """Read the split of each row of ``index``; with ``fold``, that fold is val and the other folds are train.

    Raises:
        UserError: the file is missing or damaged, does not belong to these studies, or has no such fold.
    """
    if not path.exists():
        raise UserError(f"{path}: no such file; run `dvc repro split` first")
    table = read_splits_table(path)
    if list(table.columns) != COLUMNS:
        raise UserError(f"{path}: must have the columns {', '.join(COLUMNS)}; {AGAIN}")
    for column, wrong, rule in (
        ("split", ~table["split"].isin([*SPLITS, LEAKED]), f"must be {', '.join(SPLITS)} or {LEAKED}"),
        ("patientId", table["patientId"].duplicated(), "must be there once"),
        ("patientId", ~table["patientId"].isin(index["patientId"]), f"is not in {PREPARED / INDEX}"),
    ):
        if wrong.any():
            row = int(wrong.to_numpy().argmax())
            raise UserError(f"{path} line {row + 2}: {column} {shown(table[column].iloc[row])}: {rule}; {AGAIN}")
    names = table["split"] if fold is None else _with_fold(table, fold, path)
    splits = index["patientId"].map(dict(zip(table["patientId"], names, strict=True)))
    if splits.isna().any():
        raise UserError(f"{path}: lacks study {index['patientId'][splits.isna()].iloc[0]}; {AGAIN}")
    return splits


def _with_fold(table: pd.DataFrame, fold: int, path: Path) -> pd.Series:
    if not (table["part"] == f"{FOLD}{fold}").any():
        raise UserError(f"{path}: has no fold {fold}; set split.folds, and run `dvc repro split`")
    return table["part"].map(
        lambda part: part if not part.startswith(FOLD) else "val" if part == f"{FOLD}{fold}" else "train"
    )


def read_folds(path: Path) -> list[int]:
    """Read the numbers of the folds among the parts, in order; none if the studies were not dealt to folds.

    Raises:
        UserError: the file is missing or damaged.
    """
    if not path.exists():
        raise UserError(f"{path}: no such file; run `dvc repro split` first")
    table = read_splits_table(path)
    if list(table.columns) != COLUMNS:
        raise UserError(f"{path}: must have the columns {', '.join(COLUMNS)}; {AGAIN}")
    numbers = {part.removeprefix(FOLD) for part in table["part"] if part.startswith(FOLD)}
    return sorted(int(number) for number in numbers if number.isdecimal())


def read_splits_table(path: Path) -> pd.DataFrame:
    """Read the table as it stands in its file, every cell as text.

    Raises:
        UserError: the file is not a table.
    """
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except ValueError as error:  # pandas raises ValueErrors, also for text that is not UTF-8
        raise UserError(f"{path}: not a table: {one_line(str(error))}; {AGAIN}") from None
    # The last line of a file that was cut off has fewer fields: pandas fills the missing ones with NaN.
    return table.fillna("")
