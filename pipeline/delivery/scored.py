"""The table of scored studies, ``scored.csv``: it grows line by line, and damage to a line costs only that line."""

import csv
import io
import logging
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.errors import UserError
from pipeline.escaping import original_cell, printable, safe_cell
from pipeline.files import PRIVATE, write_atomic

logger = logging.getLogger(__name__)

SCORED = "scored.csv"
DAMAGED = "scored.damaged.csv"
COLUMNS = (
    "sha256", "file", "scored_at", "model", "image_score", "PredictionString", "problem",
    # Values that monitoring compares with the studies on which the model was validated.
    "view", "grey_mean", "grey_std", "findings",
)  # fmt: skip
_DIGEST = re.compile(r"[0-9a-f]{64}")
_BEGINNING = re.compile(rb"[0-9a-f]{16}")
_NUMBERS = ("image_score", "grey_mean", "grey_std")
_BOM = b"\xef\xbb\xbf"


@dataclass
class Table:
    """The rows of a table, column -> text; their lines and the damaged ones as bytes; and whether it has its header."""

    rows: list[dict[str, str]] = field(default_factory=list)
    lines: list[bytes] = field(default_factory=list)
    damaged: list[bytes] = field(default_factory=list)
    has_header: bool = False
    """In its first line."""
    is_ours: bool = False
    """A row, a header in any line, or what is left of one, says so."""


def read_scored(path: Path) -> list[dict[str, str]]:
    """Read the rows of a table; its damaged lines are counted in the log, and stay for the inbox to set aside.

    Raises:
        UserError: the file does not exist, or is another table.
    """
    try:
        table = _parse(path, path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; `pneumoflow inbox` or `python -m flows.inference` writes it") from None
    if table.damaged:
        logger.warning("%s: %d damaged lines passed over", path, len(table.damaged))
    return table.rows


def open_scored(path: Path) -> set[str]:
    """Return the digests of a table, which is made if need be; damaged lines go to ``scored.damaged.csv`` beside it.

    The caller holds the table's lock.

    Raises:
        UserError: the file is another table.
    """
    table = _parse(path, path.read_bytes() if path.exists() else b"")
    if table.damaged:
        aside = path.with_name(DAMAGED)
        _append_bytes(aside, b"".join(line + b"\n" for line in table.damaged))
        logger.warning("%s: %d damaged lines; they are in %s now", path, len(table.damaged), aside)
    if table.damaged or not table.has_header:
        content = b"".join(line + b"\n" for line in (_line(COLUMNS), *table.lines))
        write_atomic(path, lambda new: new.write_bytes(content), private=True)
    return {row["sha256"] for row in table.rows}


def append_rows(path: Path, rows: Iterable[Sequence[str]]) -> None:
    """Add rows; they are on the disk when this returns."""
    _append_bytes(path, b"".join(_line(row) + b"\n" for row in rows))


def _append_bytes(path: Path, content: bytes) -> None:
    # The file is private, because it contains file names.
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, PRIVATE), "ab") as file:
        os.fchmod(file.fileno(), PRIVATE)
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _line(row: Sequence[str]) -> bytes:
    """Return a row as a line of the file, cleaned: a name may hold line breaks, and any other bytes."""
    clean = [safe_cell(printable(" ".join(value.splitlines()), limit=len(value))) for value in row]
    text = io.StringIO()
    csv.writer(text, lineterminator="").writerow(clean)
    return text.getvalue().encode("utf-8")


def _parse(path: Path, content: bytes) -> Table:
    table = Table()
    *whole, half = content.removeprefix(_BOM).split(b"\n")
    lines = [line.removesuffix(b"\r") for line in whole]
    for number, line in enumerate(lines):
        cells = _cells(line)
        if cells == list(COLUMNS):
            # A header in any other place is not a row; two tables may have been joined, or a line may precede it.
            table.has_header = table.has_header or number == 0
            table.is_ours = True
        elif cells is not None and _is_row(row := dict(zip(COLUMNS, cells, strict=True))):
            table.rows.append({name: original_cell(value) for name, value in row.items()})
            table.lines.append(line)
        elif line:
            table.damaged.append(line)
    # The last number of an unfinished line may have been cut, and look whole.
    table.damaged += [half] if half else []
    table.is_ours = table.is_ours or bool(table.rows) or _is_left_of_ours(table.damaged)
    if not table.is_ours and any(_is_text(line) for line in table.damaged):
        raise UserError(f"{path}: not a table of scored studies; move it away")
    return table


def _cells(line: bytes) -> list[str] | None:
    """Return the cells of a line; None if there are not as many as columns, or the line is not text."""
    try:
        text = line.decode("utf-8")
        cells = [] if "\0" in text else next(csv.reader([text], strict=True), [])
    except (UnicodeDecodeError, csv.Error):
        return None
    return cells if len(cells) == len(COLUMNS) else None


def _is_row(row: Mapping[str, str]) -> bool:
    numbers = all(not row[name] or _is_number(row[name]) for name in _NUMBERS)
    count = not row["findings"] or (row["findings"].isascii() and row["findings"].isdigit())
    return _DIGEST.fullmatch(row["sha256"]) is not None and numbers and count


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _is_left_of_ours(lines: Sequence[bytes]) -> bool:
    """Return whether these are rows or a header that lost bytes on the disk, rather than text of another origin."""
    # A header may have been cut off, or be split over two lines.
    cut_header = any(line and _line(COLUMNS).startswith(line) for line in lines)
    names = sum(any(name.encode() in line for line in lines) for name in COLUMNS)
    return cut_header or names > len(COLUMNS) // 2 or any(_BEGINNING.match(line) for line in lines)


def _is_text(line: bytes) -> bool:
    text = line.decode("utf-8", "replace").strip()
    return text != "" and text.isprintable()
