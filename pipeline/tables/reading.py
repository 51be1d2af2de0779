"""Reading of a table's columns by their names, whatever else the table contains."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas as pd

from pipeline.errors import UserError
from pipeline.escaping import printable, quoted
from pipeline.tables.alignment import align
from pipeline.tables.cells import plain_numbers
from pipeline.tables.dialect import Record, read_records
from pipeline.tables.text import table_text

LINE = "line"
# Each row takes memory; the challenge has 30,227 rows.
MAX_ROWS = 2_000_000


def read_table(
    path: Path, columns: Sequence[str], numbers: Sequence[str] = (), optional: Sequence[str] = ()
) -> pd.DataFrame:
    """Read the ``columns`` of a CSV file as stripped text; the index, ``line``, is the file's line where a row begins.

    Columns in ``optional`` are in the result if the file has them.

    Commas, semicolons, tabs, bars or spaces may separate the values. Quotes, blank lines, other columns, another order
    or case of the header, R's row names, separators at the ends of lines, and the encodings and compression formats of
    `table_text` are understood. In the columns ``numbers``, decimal commas become points, and NA, NaN, null and the
    like become empty.

    Raises:
        UserError: the file is missing or is not such a table; or a line, which is named, allows no or several readings.
    """
    try:
        file, text = table_text(path)
    except FileNotFoundError:
        needed = f"a table with the columns {', '.join(columns)} is needed"
        raise UserError(f"{printable(path)}: no such file; {needed}") from None
    name = printable(file)
    records = _bounded(name, read_records(name, text, columns))
    if not records:
        raise UserError(f"{name}: not a CSV table: it is empty; needs the columns {', '.join(columns)}")
    (header_line, header), *records = records
    there = {cell.casefold() for cell in header}
    columns = [*columns, *(column for column in optional if column.casefold() in there)]
    positions = [_positions(f"{name} line {header_line}", column, header, columns) for column in columns]
    rows = align(name, header, records)
    lines = [line for line, _ in records]
    cells = {column: _column(name, column, at, lines, rows) for column, at in zip(columns, positions, strict=True)}
    commas = [cell for column in numbers for cell in cells[column] if "," in cell]
    for column in numbers:
        cells[column] = plain_numbers(name, column, dict(zip(lines, cells[column], strict=True)), commas)
    return pd.DataFrame(cells, index=pd.Index(lines, name=LINE, dtype="int64"), dtype=str)


def read_columns(path: Path, columns: Sequence[str]) -> list[str]:
    """Return the names of all columns of a table that has ``columns``, as `read_table` finds them.

    Raises:
        FileNotFoundError: the file is missing.
        UserError: the file is not such a table.
    """
    file, text = table_text(path)
    return next((cells for _, cells in read_records(printable(file), text, columns)), [])


def _bounded(name: str, records: Iterable[Record]) -> list[Record]:
    kept = []
    for record in records:
        kept.append(record)
        if len(kept) > MAX_ROWS + 1:
            raise UserError(f"{name} line {record[0]}: more than {MAX_ROWS} rows, the most that a table may have")
    return kept


def _positions(table: str, column: str, header: Sequence[str], columns: Sequence[str]) -> list[int]:
    """Return the positions of the column in the header: several if its name occurs several times."""
    positions = [at for at, name in enumerate(header) if name.casefold() == column.casefold()]
    if not positions:
        names = ", ".join(quoted(name, 40) for name in header[:12])
        raise UserError(f"{table}: column {column!r} is missing; needs {', '.join(columns)}; found {names}")
    return positions


def _column(
    name: str, column: str, occurrences: Sequence[int], lines: Sequence[int], rows: list[list[str]]
) -> list[str]:
    first, *others = occurrences
    for other in others:
        for line, row in zip(lines, rows, strict=True):
            if row[first] != row[other]:
                raise UserError(
                    f"{name} line {line}: column {column!r} is there {len(occurrences)} times, here with"
                    f" {quoted(row[first], 40)} and {quoted(row[other], 40)}; keep one of them"
                )
    return [row[first] for row in rows]
