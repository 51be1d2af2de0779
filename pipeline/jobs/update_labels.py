"""Corrected labels of some studies put into a data set that exists; the other studies stay as they are."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from pipeline.data.annotations import BOX, CLASSES, IMAGES, LABELS, read_annotations
from pipeline.data.classes import NOT_NORMAL, OPACITY
from pipeline.data.discovery import by_study, image_files
from pipeline.data.frontal import choose_images
from pipeline.data.parallel import Workers
from pipeline.errors import UserError
from pipeline.escaping import printable, quoted
from pipeline.files import write_text
from pipeline.jobs.import_data import summary
from pipeline.sources.formats import read_labelled
from pipeline.sources.label_table import HEADER, boxes_of, csv_text, each_once, label_rows
from pipeline.sources.labelled import Box, Images, Labelled
from pipeline.tables import read_columns, read_table, table_exists


def update_labels(source: Path, folder: Path, kind: str) -> str:
    """Replace the boxes of the studies that ``source`` labels in the data set ``folder``; return lines about it.

    Images of the data set that had no label get one. The class table, if there is one, follows where Target changes.

    Args:
        source: the label file, or the folder of the label files; its images go by the names of studies or files.
        folder: a data set in the project's layout.
        kind: the format, or ``auto``.

    Raises:
        UserError: the source or a table cannot be read, or the source has an image that the data set has not; nothing
            is changed then.
    """
    annotations = read_annotations(folder, with_classes=False)
    path = folder / LABELS
    table = _read_labels(path)
    found, ids = _read_source(source, folder, kind, annotations.studies["patientId"].to_list())
    boxes = each_once(found)
    _require_one_class(path, table, boxes)
    of_image = boxes_of(boxes)
    new = {ids[image]: of_image.get(image, []) for image in found.images}
    if any(box.reader for box in boxes) and "reader" not in table:
        table["reader"] = ""
    text = csv_text(table.columns.to_list(), _rows(table, new))
    targets = dict(zip(annotations.studies["patientId"], annotations.studies["target"], strict=True))
    changed = {key: bool(own) for key, own in new.items() if targets.get(key) != bool(own)}
    classes = _class_table(folder / CLASSES, changed)
    if classes:
        write_text(folder / CLASSES, classes)
        found.notes["rows of the class table that follow a changed Target"] += len(changed)
    write_text(path, text)
    if found.unlabelled:
        found.notes["images without an annotation, whose labels stay"] += len(found.unlabelled)
    return summary(found, found.images, boxes)


def _read_source(source: Path, folder: Path, kind: str, ids: Sequence[str]) -> tuple[Labelled, Mapping[Path, str]]:
    """Read the source; return it, and the study of each image."""
    images = folder / IMAGES
    files_of = by_study(image_files(images), set(ids), images)
    files = choose_images(files_of, list(files_of), Workers()).files
    return read_labelled(source, Images(images, files), kind), {path: key for key, path in files.items()}


def _read_labels(path: Path) -> pd.DataFrame:
    """Read the label table as it is; numbers have decimal points."""
    columns = ["patientId", *BOX, "Target"]
    _require_all_kept(path, columns, HEADER)
    return read_table(path, columns, numbers=[*BOX, "Target"], optional=["class", "reader"])


def _require_all_kept(path: Path, columns: Sequence[str], kept: Sequence[str]) -> None:
    """Refuse a table that is packed, or that has a column which would be lost."""
    if not path.exists():
        raise UserError(f"{path}: no such file; unpack the table first, if it is packed")
    for name in read_columns(path, columns):
        if name and name.casefold() not in {column.casefold() for column in kept}:
            raise UserError(f"{path}: column {quoted(name)}: would be lost; only {', '.join(kept)} are kept")


def _require_one_class(path: Path, table: pd.DataFrame, boxes: Sequence[Box]) -> None:
    names = sorted({box.name for box in boxes})
    if "class" not in table and len(names) > 1:
        shown = ", ".join(printable(name, 40) for name in names[:10])
        raise UserError(f"{path}: has no column 'class', but the boxes are of {len(names)} classes: {shown}")


def _rows(table: pd.DataFrame, new: Mapping[str, Sequence[Box]]) -> list[list[str]]:
    """Return the table's rows; those of a study in ``new`` at the place of its first row, or at the end."""
    header = table.columns.to_list()
    written: dict[str, list[list[str]]] = {}
    for row in table.itertuples(index=False):
        key = str(row[0])
        if key in new:
            written.setdefault(key, label_rows(key, new[key], header))
        else:
            written.setdefault(key, []).append([str(cell) for cell in row])
    for key, boxes in new.items():
        written.setdefault(key, label_rows(key, boxes, header))
    return [row for rows in written.values() for row in rows]


def _class_table(path: Path, targets: Mapping[str, bool]) -> str:
    """Return the class table's text with these studies' classes; an empty text if nothing changes."""
    if not targets or not table_exists(path):
        return ""
    columns = ["patientId", "class"]
    _require_all_kept(path, columns, columns)
    table = read_table(path, columns)
    classes = {key: OPACITY if target else NOT_NORMAL for key, target in targets.items()}
    kept = [row for row in table.itertuples(index=False, name=None) if row[0] not in classes]
    return csv_text(table.columns.to_list(), [*kept, *classes.items()])
