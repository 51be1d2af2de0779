"""Rows that have more values than the header has names: R's row names, or separators at the ends of lines."""

import math
from collections.abc import Sequence

from pipeline.errors import UserError
from pipeline.tables.cells import as_number
from pipeline.tables.dialect import Record


def align(place: str, header: Sequence[str], records: Sequence[Record]) -> list[list[str]]:
    """The cells of each record, as many as the header has names.

    R's ``write.table`` gives each row a name, and the header none for it. Such names are unique, and numbers or the
    ids themselves; without this proof the rows are too long.

    Raises:
        UserError: a row is too short or too long, or rows may be read in two ways; names the line.
    """
    width = max((at for at, name in enumerate(header, start=1) if name), default=0)
    rows = [row for _, row in records]
    if _has_row_names(place, width, records):
        rows = [row[1:] for row in rows]
    for (line, row), kept in zip(records, rows, strict=True):
        if len(kept) < width or any(kept[width:]):
            raise UserError(f"{place} line {line}: {len(row)} values, but the header names {width} columns")
    return [[*row[: len(header)], *[""] * (len(header) - len(row))] for row in rows]


def _has_row_names(place: str, width: int, records: Sequence[Record]) -> bool:
    rows = [row for _, row in records]
    if not rows or width < 2 or any(len(row) <= width for row in rows) or any(any(row[width + 1 :]) for row in rows):
        return False
    first, second = [row[0] for row in rows], [row[1] for row in rows]
    if len(set(first)) < len(first) or not (all(map(_is_whole, first)) or first == second):
        return False
    if any(row[width] for row in rows):
        return True
    # All rows end with a separator, or the last column of a table with row names is empty.
    if all(second) and len(set(second)) == len(second) and all(math.isnan(as_number(cell)) for cell in second):
        raise UserError(
            f"{place} line {records[0][0]}: {len(rows[0])} values, but the header names {width} columns: the first"
            " may be a row's name, or the last may be empty; give each column a name"
        )
    return False


def _is_whole(cell: str) -> bool:
    return cell.isascii() and cell.isdigit()
