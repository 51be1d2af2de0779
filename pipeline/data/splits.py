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
COLUMNS = ["patientId", "groupId", "part", "split", "rule"]


def require_no_leak(studies: pd.DataFrame, split: pd.Series) -> None:
    """Stop when a patient or a cluster is in two splits, or when a split is empty.

    ``leaked`` studies belong to train patients on purpose.

    Raises:
        UserError: the message names the patient and the number of its splits, or the empty split.
    """
    whole = split.replace(LEAKED, "train")
    for column in ("groupId", "cluster"):
        spread = whole.groupby(studies[column]).nunique()
        if (spread > 1).any():
            raise UserError(f"patient {spread.idxmax()} is in {int(spread.max())} splits; a patient must be in one")
    for name in SPLITS:
        if not (split == name).any():
            raise UserError(f"split {name} is empty; more studies or another split.fractions are needed")


def read_splits(path: Path, index: pd.DataFrame) -> pd.Series:
    """Read the split of each row of ``index``.

    Raises:
        UserError: the file is missing or damaged, or does not belong to these studies.
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
    splits = index["patientId"].map(dict(zip(table["patientId"], table["split"], strict=True)))
    if splits.isna().any():
        raise UserError(f"{path}: lacks study {index['patientId'][splits.isna()].iloc[0]}; {AGAIN}")
    return splits


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
