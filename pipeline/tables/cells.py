"""Meaning of a table's cell: nothing, a number, or text."""

import math
import re
from collections.abc import Mapping, Sequence

from pipeline.errors import UserError
from pipeline.escaping import quoted

# As pandas, R, SQL, Excel and Python write a value that is not there; in lower case.
_MISSING = frozenset({"", "na", "n/a", "#n/a", "nan", "-nan", "null", "none", "<na>"})
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
_DECIMAL_COMMA = re.compile(r"[+-]?[0-9]*,[0-9]+([eE][+-]?[0-9]+)?")
_THOUSANDS = re.compile(r"[+-]?[1-9][0-9]{0,2}(,[0-9]{3})+")


def is_missing(cell: str) -> bool:
    """Tell whether the cell stands for a missing value: it is empty, NA, NaN, N/A, null or None."""
    return cell.strip().lower() in _MISSING


def as_number(cell: str) -> float:
    """The number in a cell; NaN where there is none. Infinite ones are none, nor is what only Python reads (1_0)."""
    number = float(cell) if _NUMBER.fullmatch(cell) else math.nan
    return number if math.isfinite(number) else math.nan


def plain_numbers(place: str, column: str, cells: Mapping[int, str], commas: Sequence[str]) -> list[str]:
    """The cells of a column of numbers with a decimal point, and empty where there is no value.

    Cells that are neither stay as they are.

    Args:
        place: the file, for the error.
        column: its name, for the error.
        cells: line -> cell.
        commas: all cells of the table's numbers that have a comma: one such as ``10,5`` shows what commas mean.

    Raises:
        UserError: a comma may be a decimal comma or part thousands.
    """
    decimal = any(_DECIMAL_COMMA.fullmatch(cell) and not _THOUSANDS.fullmatch(cell) for cell in commas)
    plain = []
    for line, cell in cells.items():
        if not decimal and _THOUSANDS.fullmatch(cell):
            raise UserError(
                f"{place} line {line}, column {column!r}: {quoted(cell, 40)}: the comma may be a decimal comma or"
                " part thousands; write a decimal point, or no comma"
            )
        decimal_comma = decimal and _DECIMAL_COMMA.fullmatch(cell)
        plain.append(cell.replace(",", ".") if decimal_comma else "" if is_missing(cell) else cell)
    return plain
