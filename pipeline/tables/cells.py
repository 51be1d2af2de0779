"""Interpretation of a table's cell: a missing value, a number, or text."""

import math
import re
from collections.abc import Mapping, Sequence

from pipeline.errors import UserError
from pipeline.escaping import quoted

# Missing values as pandas, R, SQL, Excel and Python write them, in lower case.
_MISSING = frozenset({"", "na", "n/a", "#n/a", "nan", "-nan", "null", "none", "<na>"})
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
_DECIMAL_COMMA = re.compile(r"[+-]?[0-9]*,[0-9]+([eE][+-]?[0-9]+)?")
_THOUSANDS = re.compile(r"[+-]?[1-9][0-9]{0,2}(,[0-9]{3})+")


def is_missing(cell: str) -> bool:
    """Tell whether the cell stands for a missing value: it is empty, NA, NaN, N/A, null or None."""
    return cell.strip().lower() in _MISSING


def as_number(cell: str) -> float:
    """Return the number in a cell, or NaN; infinite numbers and forms that only Python reads (1_0) give NaN too."""
    number = float(cell) if _NUMBER.fullmatch(cell) else math.nan
    return number if math.isfinite(number) else math.nan


def plain_numbers(name: str, column: str, cells: Mapping[int, str], commas: Sequence[str]) -> list[str]:
    """Return the cells of a column of numbers with decimal points, and empty cells for missing values.

    Cells that are neither stay as they are.

    Args:
        name: the file, for the error.
        column: the column's name, for the error.
        cells: line -> cell.
        commas: all cells with a comma in the table's number columns; one such as ``10,5`` shows what commas mean.

    Raises:
        UserError: a comma may be a decimal comma or may separate thousands.
    """
    decimal = any(_DECIMAL_COMMA.fullmatch(cell) and not _THOUSANDS.fullmatch(cell) for cell in commas)
    plain = []
    for line, cell in cells.items():
        if not decimal and _THOUSANDS.fullmatch(cell):
            raise UserError(
                f"{name} line {line}, column {column!r}: {quoted(cell, 40)}: the comma may be a decimal comma or"
                " part thousands; write a decimal point, or no comma"
            )
        decimal_comma = decimal and _DECIMAL_COMMA.fullmatch(cell)
        plain.append(cell.replace(",", ".") if decimal_comma else "" if is_missing(cell) else cell)
    return plain
