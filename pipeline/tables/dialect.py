"""Splitting of a table's text into records: separators, quotes, blank lines and the true number of each line."""

import csv
import io
import itertools
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from pipeline.errors import UserError

SEPARATORS = (",", ";", "\t", "|", " ")

# Lines may be long: a submission has all detections of an image in one cell.
_LONGEST_LINE = 16 * 2**20
# Appended to the text, to find a quote that is never closed: it swallows this mark.
_END = "\ue000end"
# The optional first line that tells Excel the separator.
_SEPARATOR_LINE = re.compile(r'"?sep=(.)"?[ \t]*(?:\r\n|\r|\n)', re.I)
_HEAD = 2**16

Record = tuple[int, list[str]]


def read_records(name: str, text: str, columns: Sequence[str]) -> Iterator[Record]:
    """Yield each record of a table that has any value: the number of its first line, and its stripped cells.

    A ``sep=`` line states the separator; otherwise it is the one with which the first record names most of ``columns``.

    Raises:
        UserError: a line is too long, or a quote is never closed.
    """
    start, separators = 1, list(SEPARATORS)
    told = _SEPARATOR_LINE.match(text)
    if told:
        text, start, separators = text[told.end() :], 2, [told[1]]
    with _long_cells():
        separator = max(separators, key=lambda one: _named(text[:_HEAD], one, columns))
        yield from _records(name, text, separator, start)


def _named(head: str, separator: str, columns: Sequence[str]) -> int:
    """Count the ``columns`` that the first record names when it is split at ``separator``."""
    rows = csv.reader(io.StringIO(head, newline=""), delimiter=separator, skipinitialspace=True)
    first = next((row for row in rows if any(cell.strip() for cell in row)), [])
    return len({name.strip().casefold() for name in first} & {column.casefold() for column in columns})


def _records(name: str, text: str, separator: str, start: int) -> Iterator[Record]:
    lines = itertools.chain(_lines(name, text, start), [_END])
    reader = csv.reader(lines, delimiter=separator, skipinitialspace=True)
    offset = start
    for row in reader:
        if row == [_END]:
            return
        if row and row[-1].endswith(_END):
            raise UserError(f'{name} line {offset}: a quote (") is opened and never closed')
        cells = [cell.strip() for cell in row]
        if any(cells):
            yield offset, cells
        offset = start + reader.line_num


def _lines(name: str, text: str, start: int) -> Iterator[str]:
    """Yield the lines unchanged; a line ends with LF, CR or both."""
    for number, line in enumerate(io.StringIO(text, newline=""), start):
        if len(line) > _LONGEST_LINE:
            raise UserError(f"{name} line {number}: {len(line)} characters; a line may have at most {_LONGEST_LINE}")
        yield line


@contextmanager
def _long_cells() -> Iterator[None]:
    """Allow cells as long as a line may be, then restore the csv module's limit, which is that of the whole process."""
    before = csv.field_size_limit(2 * _LONGEST_LINE)
    try:
        yield
    finally:
        csv.field_size_limit(before)
