"""Parsers of the tables of prepared data, which check every row: each value is one that can exist."""

import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from pipeline.data.manifest import REBUILD
from pipeline.errors import UserError
from pipeline.escaping import one_line, original_cell

INDEX_COLUMNS = [
    "patientId", "shard", "row", "height", "width", "view", "sex", "age", "spacing",
    "groupId", "class", "target", "cluster",
]  # fmt: skip
GIVEN = "splits.csv"  # beside the label table
GIVEN_SPLIT = "split"  # one column more, if the data set came with a split
GIVEN_SPLITS = ("train", "val", "test")
BOX_COLUMNS = ["patientId", "x", "y", "width", "height"]
BOX_CLASS = "class"  # one column more, if there are several classes
_NUMBERS = {
    "row": "int64",
    "height": "int64",
    "width": "int64",
    "target": "int64",
    "age": "float64",
    "spacing": "float64",
}
# DICOM stores the numbers of rows and columns in 16 bits.
_MAX_SIDE = 65_535


def parse_index(content: bytes, path: Path) -> pd.DataFrame:
    """Parse the index; texts stay as written: 'NA' is not a missing value, '007' is not 7.

    Raises:
        UserError: a column is missing, or a value is impossible in prepared data.
    """
    types = {name: _NUMBERS.get(name, "str") for name in INDEX_COLUMNS}
    if _has_last(content, GIVEN_SPLIT):
        types[GIVEN_SPLIT] = "str"
    table = _parse(content, path, types, {"age": [""], "spacing": [""]})
    location = table["shard"] + ":" + table["row"].astype(str)
    _refuse(
        path,
        table,
        {
            "patientId": (table["patientId"] == "", "must be an id"),
            "patientId ": (table["patientId"].duplicated(), "must be there once"),
            "shard": (~table["shard"].str.fullmatch(r"images-\d{5,9}\.npy"), "must be the name of a shard"),
            "row": (table["row"] < 0, "must be at least 0"),
            "row ": (location.duplicated(), "must be that of one study"),
            "height": (~table["height"].between(1, _MAX_SIDE), f"must be 1 to {_MAX_SIDE}"),
            "width": (~table["width"].between(1, _MAX_SIDE), f"must be 1 to {_MAX_SIDE}"),
            "target": (~table["target"].isin([0, 1]), "must be 0 or 1"),
            "groupId": (table["groupId"] == "", "must be an id"),
            "cluster": (table["cluster"] == "", "must be an id"),
        },
    )
    if GIVEN_SPLIT in table:
        wrong = ~table[GIVEN_SPLIT].isin(["", *GIVEN_SPLITS])
        _refuse(path, table, {GIVEN_SPLIT: (wrong, f"must be {', '.join(GIVEN_SPLITS)}, or empty")})
    return table.assign(**{"class": table["class"].map(original_cell)})


def parse_boxes(content: bytes, path: Path) -> pd.DataFrame:
    """Parse the boxes: patientId, x, y, width, height in pixels of the original, and class, if there are several.

    Raises:
        UserError: a column is missing, or a value is impossible for a box.
    """
    types = {"patientId": "str"} | dict.fromkeys(BOX_COLUMNS[1:], "float64")
    if _has_last(content, BOX_CLASS):
        types[BOX_CLASS] = "str"
    table = _parse(content, path, types, {})
    rules = {name: (~(table[name] >= 0) | ~np.isfinite(table[name]), "must be at least 0") for name in ("x", "y")}
    rules |= {
        name: (~table[name].between(0, _MAX_SIDE, inclusive="right"), f"must be above 0 and at most {_MAX_SIDE}")
        for name in ("width", "height")
    }
    _refuse(path, table, rules)
    return table


def _has_last(content: bytes, column: str) -> bool:
    """Return whether the header of a table ends with this column."""
    return content.split(b"\n", 1)[0].rstrip(b"\r").endswith(f",{column}".encode())


def _parse(content: bytes, path: Path, types: Mapping[str, str], missing: Mapping[str, list[str]]) -> pd.DataFrame:
    try:
        table = pd.read_csv(io.BytesIO(content), dtype=dict(types), keep_default_na=False, na_values=dict(missing))
    except (ValueError, OverflowError) as error:  # pandas raises ValueErrors, also for text that is not UTF-8
        raise UserError(f"{path}: not a table: {one_line(str(error))}; {REBUILD}") from None
    # If a row is longer than the header, pandas makes an index of its first cells and shifts the columns.
    if list(table.columns) != list(types) or not isinstance(table.index, pd.RangeIndex):
        raise UserError(f"{path}: must have the columns {', '.join(types)}; {REBUILD}")
    return table


def _refuse(path: Path, table: pd.DataFrame, rules: Mapping[str, tuple[pd.Series, str]]) -> None:
    for name, (wrong, rule) in rules.items():
        if wrong.any():
            row, column = int(np.flatnonzero(wrong)[0]), name.strip()
            value = one_line(str(table[column].iloc[row]))
            raise UserError(f"{path} line {row + 2}: {column} = {value}: {rule}; {REBUILD}")
