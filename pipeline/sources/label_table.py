"""Rows of the project's label table, made of the boxes of any format."""

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path

from pipeline.escaping import safe_cell
from pipeline.sources.labelled import Box, Labelled

HEADER = ["patientId", "x", "y", "width", "height", "Target", "class", "reader"]


def each_once(found: Labelled) -> list[Box]:
    """Return the boxes, equal ones once; how many were there again is added to the notes."""
    boxes = list(dict.fromkeys(found.boxes))
    if again := len(found.boxes) - len(boxes):
        found.notes["boxes that are there twice kept once"] += again
    return boxes


def boxes_of(boxes: Iterable[Box]) -> dict[Path, list[Box]]:
    """Return the boxes of each image that has any."""
    of_image: dict[Path, list[Box]] = {}
    for box in boxes:
        of_image.setdefault(box.image, []).append(box)
    return of_image


def label_rows(key: str, boxes: Sequence[Box], header: Sequence[str]) -> list[list[str]]:
    """Return the rows of a study, with the columns of ``header``, which are some of `HEADER`; without boxes, one."""
    rows = [
        dict(zip(HEADER, (key, *map(_short, box[1:5]), "1", safe_cell(box.name), safe_cell(box.reader)), strict=True))
        for box in boxes
    ]
    return [[row.get(column, "") for column in header] for row in rows or [{"patientId": key, "Target": "0"}]]


def _short(value: float) -> str:
    return f"{value:.6f}".rstrip("0").rstrip(".")


def csv_text(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a table as CSV text."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue()
