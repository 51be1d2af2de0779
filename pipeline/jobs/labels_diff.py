"""Comparison of two versions of a data set's labels."""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from pipeline.data.annotations import IMAGES, LABELS, Annotations, read_annotations
from pipeline.data.discovery import by_study, image_files
from pipeline.data.frontal import choose_images
from pipeline.data.label_changes import STUDY_ADDED, STUDY_REMOVED, Change, counts, label_changes
from pipeline.data.parallel import Workers
from pipeline.data.reader import Reader, reading_processes
from pipeline.dicom.radiograph import Radiograph
from pipeline.dvc.command import run_dvc
from pipeline.errors import UserError
from pipeline.escaping import printable
from pipeline.files import temporary_folder, write_text
from pipeline.progress import with_progress
from pipeline.reports.changes_page import render_changes_page

_PICTURED = 60


def labels_diff(before: str, after: str, data: Path, page: Path, study_seconds: float) -> str:
    """Write a page about the changes between two versions; return their numbers in lines.

    Args:
        before: the older version: the folder of a data set, a label table, or a git revision of ``data``.
        after: the newer version, given in one of these ways.
        data: the data set of this project; its images are drawn, unless ``after`` is a folder.
        page: the page to write.
        study_seconds: a study that takes longer to read has no picture.

    Raises:
        UserError: a version is not there, or its label table is malformed.
    """
    changes = label_changes(_read(before, data), _read(after, data))
    studies = list(dict.fromkeys(change.study for change in changes))[:_PICTURED]
    images = _images((Path(after) if Path(after).is_dir() else data) / IMAGES, studies, study_seconds)
    write_text(page, render_changes_page(changes, (before, after), images, len(studies)))
    return summary(changes)


def summary(changes: Sequence[Change]) -> str:
    """Return the numbers of changed studies and boxes, a line for each class."""
    kinds = [change.kind for change in changes]
    found = f"{len({change.study for change in changes})} studies changed"
    found += f"; {kinds.count(STUDY_ADDED)} new, {kinds.count(STUDY_REMOVED)} gone"
    rows = [
        f"  {name or 'boxes'}: {', '.join(f'{count} {kind}' for kind, count in row.items())}"
        for name, row in counts(changes).items()
    ]
    return "\n".join([found, *rows])


def _read(version: str, data: Path) -> Annotations:
    """Read the labels of a version; boxes of several readers stay apart."""
    path = Path(version)
    if path.is_dir():
        annotations = read_annotations(path, with_classes=False)
    elif path.exists():
        annotations = read_annotations(path.parent, path, with_classes=False)
    else:
        annotations = _of_revision(version, data)
    for key, reason in annotations.problems.items():
        raise UserError(f"{printable(version)}: {key}: {reason}")
    return annotations


def _of_revision(revision: str, data: Path) -> Annotations:
    if revision.startswith("-"):
        raise UserError(f"{printable(revision)}: no such file, and no git revision begins with '-'")
    with temporary_folder() as folder:
        try:
            run_dvc(["get", ".", str(data / LABELS), "--rev", revision, "--out", str(folder / LABELS)], lambda _: None)
        except UserError as error:
            what = "no such file or folder, and no version of this git repository that has labels"
            raise UserError(f"{printable(revision)}: {what}: {error}") from None
        return read_annotations(folder, with_classes=False)


def _images(folder: Path, studies: Sequence[str], study_seconds: float) -> dict[str, Radiograph]:
    """Read the images of these studies, those that are there and can be read."""
    files: dict[str, Path] = {}
    with suppress(UserError):  # no image at all
        files = choose_images(by_study(image_files(folder), set(studies), folder), studies, Workers()).files
    with Reader(reading_processes(), study_seconds) as reader:
        read = zip(files, reader.read_each(files.values()), strict=True)
        return {key: one for key, one in with_progress(read, "Drawing", len(files)) if isinstance(one, Radiograph)}
