"""Import of a labelled data set of another format into the project's layout, whole or not at all."""

import os
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from pipeline.data.annotations import GROUPS, IMAGES, LABELS
from pipeline.data.metadata import COLUMNS, METADATA
from pipeline.data.prepared_tables import GIVEN
from pipeline.dicom.pictures import is_picture
from pipeline.errors import UserError
from pipeline.escaping import printable
from pipeline.files import directory_atomic, write_text
from pipeline.progress import with_progress
from pipeline.sources.formats import read_labelled
from pipeline.sources.label_table import HEADER, boxes_of, csv_text, each_once, label_rows
from pipeline.sources.labelled import Box, Images, Labelled, study_ids

_HEAD = 16


def import_data(
    source: Path,
    out: Path,
    kind: str,
    images: Path | None = None,
    *,
    without_boxes: bool = True,
    unlabelled: bool = False,
) -> str:
    """Write the data set of ``source`` to the new folder ``out``; return lines about what became of what.

    Args:
        source: the label file, or the folder of the label files.
        out: a new or empty folder.
        kind: the format, or ``auto``.
        images: the folder of the images; None: the source, or its folder.
        without_boxes: whether images that are labelled and have no box are kept, as negatives.
        unlabelled: whether images that the labels do not mention are kept, as negatives.

    Raises:
        UserError: the source cannot be read, or ``out`` has contents; nothing is written.
    """
    if out.is_dir() and any(out.iterdir()):
        raise UserError(f"{printable(out)}: has contents; give a new or an empty folder")
    folder = images or (source if source.is_dir() else source.parent)
    found = read_labelled(source, Images(folder), kind)
    kept = _chosen(found, without_boxes=without_boxes, unlabelled=unlabelled)
    ids = study_ids(kept, found.notes)
    boxes = each_once(found)
    with directory_atomic(out) as made:
        (made / IMAGES).mkdir()
        kinds = {_copy(path, made / IMAGES, ids[path]) for path in with_progress(kept, "Importing")}
        if ".dcm" in kinds and len(kinds) > 1:
            what = "DICOM files and PNG or JPEG files; import them one after the other"
            raise UserError(f"{printable(folder)}: has {what}")
        readers = any(box.reader for box in boxes)
        header = HEADER if readers else HEADER[:-1]
        rows = [row for path in kept for row in label_rows(ids[path], boxes_of(boxes).get(path, []), header)]
        write_text(made / LABELS, csv_text(header, rows))
        _write_facts(made, found, ids)
    return summary(found, kept, boxes)


def _write_facts(folder: Path, found: Labelled, ids: Mapping[Path, str]) -> None:
    """Write the optional tables: the given split, the patients, and what the images lack; those that have rows."""
    for name, values, column in ((GIVEN, found.splits, "split"), (GROUPS, found.patients, "groupId")):
        rows = [(ids[path], value) for path, value in values.items() if path in ids]
        if rows:
            write_text(folder / name, csv_text(["patientId", column], rows))
    facts = [
        (ids[path], *(known.get(one, "") for one in COLUMNS)) for path, known in found.facts.items() if path in ids
    ]
    if facts:
        write_text(folder / METADATA, csv_text(["patientId", *COLUMNS], facts))


def _chosen(found: Labelled, *, without_boxes: bool, unlabelled: bool) -> list[Path]:
    with_box = {box.image for box in found.boxes}
    kept = [path for path in found.images if without_boxes or path in with_box]
    if left := len(found.images) - len(kept):
        found.notes["images without a box left out"] += left
    if found.unlabelled:
        what = "kept as negatives" if unlabelled else "left out"
        found.notes[f"images that the labels do not mention {what}"] += len(found.unlabelled)
    kept += found.unlabelled if unlabelled else []
    if not kept:
        raise UserError("no image is left to import")
    return kept


def _copy(path: Path, folder: Path, key: str) -> str:
    """Link or copy an image under its study's id; return the suffix that it gets by its content."""
    with path.open("rb") as file:
        head = file.read(_HEAD)
    suffix = ".dcm" if not is_picture(head) else ".png" if head.startswith(b"\x89PNG") else ".jpg"
    target = folder / f"{key}{suffix}"
    try:
        os.link(path.resolve(), target)
    except OSError:  # another disk, or a file system without hard links
        shutil.copyfile(path, target)
    return suffix


def summary(found: Labelled, images: Sequence[Path], boxes: Sequence[Box]) -> str:
    """Return lines with the numbers of studies and boxes, the boxes of each class, and the notes."""
    classes = Counter(box.name for box in boxes)
    lines = [f"{len(images)} studies, {len({box.image for box in boxes})} of them with {len(boxes)} boxes"]
    lines += [f"  {printable(name, 60)}: {count}" for name, count in sorted(classes.items())]
    lines += [f"{printable(what)}: {count}" for what, count in sorted(found.notes.items())]
    return "\n".join(lines)
