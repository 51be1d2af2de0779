"""Alignment of rows that have more values than the header has names: R's row names, or separators at line ends."""

import math
from collections.abc import Sequence

from pipeline.errors import UserError
from pipeline.tables.cells import as_number
from pipeline.tables.dialect import Record


def align(table: str, header: Sequence[str], records: Sequence[Record]) -> list[list[str]]:
    """Return the cells of each record, as many as the header has names.

    R's ``write.table`` gives each row a name, but the header has no name for that column. Such row names are unique,
    and they are whole numbers or repeat the ids in the next column; without this proof the rows count as too long.

    Raises:
        UserError: a row is too short or too long, or the rows can be read in two ways; the message names the line.
    """
    width = max((at for at, name in enumerate(header, start=1) if name), default=0)
    rows = [row for _, row in records]
    if _has_row_names(table, width, records):
        rows = [row[1:] for row in rows]
    for (line, row), kept in zip(records, rows, strict=True):
        if len(kept) < width or any(kept[width:]):
            raise UserError(f"{table} line {line}: {len(row)} values, but the header names {width} columns")
    return [[*row[: len(header)], *[""] * (len(header) - len(row))] for row in rows]


def _has_row_names(name: str, width: int, records: Sequence[Record]) -> bool:
    rows = [row for _, row in records]
    if not rows or width < 2 or any(len(row) <= width for row in rows) or any(any(row[width + 1 :]) for row in rows):
        return False
    first, second = [row[0] for row in rows], [row[1] for row in rows]
    if len(set(first)) < len(first) or not (all(map(_is_whole, first)) or first == second):
        return False
    if any(row[width] for row in rows):
        return True
    # Either all rows end with a separator, or the table has row names and its last column is empty.
    if all(second) and len(set(second)) == len(second) and all(math.isnan(as_number(cell)) for cell in second):
        raise UserError(
            f"{name} line {records[0][0]}: {len(rows[0])} values, but the header names {width} columns: the first"
            " may be a row's name, or the last may be empty; give each column a name"
        )
    return False


def _is_whole(cell: str) -> bool:
    return cell.isascii() and cell.isdigit()
