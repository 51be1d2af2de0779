"""Facts that an image file lacks: ``metadata.csv`` beside the label table gives view, sex, age and pixel spacing.

A PNG or JPEG file has none of them. Where a DICOM header has a value, the header's counts.
"""

import math
from pathlib import Path

import pandas as pd

from pipeline.data.annotations import Annotations
from pipeline.data.data_issues import RULES, DataIssue
from pipeline.dicom.radiograph import SEXES
from pipeline.dicom.views import VIEWS
from pipeline.errors import UserError
from pipeline.escaping import printable, quoted
from pipeline.tables import as_number, is_missing, read_table, table_exists

METADATA = "metadata.csv"
_WORDS = {"view": VIEWS, "sex": SEXES}
# In years, and in mm; the data have ages of more than 120, which nobody's is.
_RANGES = {"age": (0.0, 160.0), "spacing": (0.01, 10.0)}
COLUMNS = [*_WORDS, *_RANGES]


def read_metadata(folder: Path) -> pd.DataFrame:
    """Read the table: the columns that it has, by patientId; empty texts and NaN where it gives nothing.

    Raises:
        UserError: the table cannot be read, names a study twice, or has a value that cannot be.
    """
    path = folder / METADATA
    if not table_exists(path):
        return pd.DataFrame(columns=COLUMNS)
    table = read_table(path, ["patientId"], optional=COLUMNS)
    again = table[table["patientId"].duplicated()]
    for line, key in again["patientId"].items():
        raise UserError(f"{path} line {line}: {quoted(key)} occurs twice; each study has one line")
    values = {
        column: [_value(path, line, column, cell) for line, cell in table[column].items()]
        for column in COLUMNS
        if column in table
    }
    return pd.DataFrame(values, index=pd.Index(table["patientId"]))


def _value(path: Path, line: object, column: str, cell: str) -> str | float:
    if is_missing(cell):
        return "" if column in _WORDS else math.nan
    if column in _WORDS:
        if cell.upper() not in _WORDS[column]:
            raise UserError(f"{path} line {line}: {column} {quoted(cell)}: must be {', '.join(sorted(_WORDS[column]))}")
        return cell.upper()
    low, high = _RANGES[column]
    number = as_number(cell)
    if not low <= number <= high:
        raise UserError(f"{path} line {line}: {column} {quoted(cell)}: must be {low:g} to {high:g}")
    return number


def fill_in(rows: pd.DataFrame, metadata: pd.DataFrame) -> pd.DataFrame:
    """Return the studies with the table's values where their files give none.

    Args:
        rows: columns ``patientId``, ``view``, ``sex``, ``age``, ``spacing``.
        metadata: as `read_metadata` returns it.
    """
    filled = rows.copy()
    for column in (one for one in COLUMNS if one in metadata and len(metadata)):
        given = rows["patientId"].map(metadata[column])
        lacking = rows[column].isna() | (rows[column] == "")
        filled[column] = rows[column].where(~(lacking & given.notna()), given)
    return filled


def unused(annotations: Annotations, metadata: pd.DataFrame) -> list[DataIssue]:
    """Return an issue for each study in the table that the data set does not have."""
    names = sorted(set(metadata.index) - set(annotations.studies["patientId"]))
    return [DataIssue(RULES["metadata_used"], printable(name, 60)) for name in names]
