"""Prediction of many files: they are read, prepared and written while the model works in a thread of its own."""

import logging
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import NamedTuple, Protocol

from pipeline.data.discovery import NO_IMAGES, Listing, list_folder, study_name
from pipeline.data.image_statistics import nearly_empty
from pipeline.data.reader import Outcome, Reader
from pipeline.delivery.predictor import Prediction, Predictor
from pipeline.dicom.radiograph import Radiograph
from pipeline.errors import BadStudyError, UserError
from pipeline.escaping import printable
from pipeline.progress import with_progress

logger = logging.getLogger(__name__)

LIST_SUFFIX = ".txt"


class Source(NamedTuple):
    """A file, and its bytes if they have been read already."""

    path: Path
    content: bytes | None = None


@dataclass
class BatchResult:
    """The numbers of studies and detections, path -> reason of the files passed over, and the nearly empty studies."""

    predicted: int = 0
    detections: int = 0
    problems: dict[Path, str] = field(default_factory=dict)
    nearly_empty: list[Path] = field(default_factory=list)


@dataclass(frozen=True)
class Study:
    """A file, its radiograph and its detections; `key` names it, because ids inside a file are not trusted."""

    path: Path
    radiograph: Radiograph
    prediction: Prediction

    @property
    def key(self) -> str:
        """Return the name of the file, without the suffix of a DICOM file."""
        return study_name(self.path)

    @cached_property
    def nearly_empty(self) -> bool:
        """Return whether it has hardly any contrast, or is nearly all black or white: detections then mean nothing."""
        return nearly_empty(self.radiograph.pixels)


class Writer(Protocol):
    """An object that takes studies one by one."""

    def write(self, study: Study) -> None:
        """Take a study."""


def predict_files(
    predictor: Predictor, reader: Reader, files: Sequence[Path], batch_size: int, writers: Sequence[Writer]
) -> BatchResult:
    """Detect in every file, and give each study to the writers; with ten thousand files, only a few are in memory."""
    result = BatchResult()
    shown = with_progress(files, "Predicting")
    problems: dict[Path, BadStudyError | OSError] = {}
    for study in predict_each(predictor, reader, map(Source, shown), batch_size, problems):
        for writer in writers:
            writer.write(study)
        result.predicted += 1
        result.detections += len(study.prediction.scores)
        if study.nearly_empty:
            result.nearly_empty.append(study.path)
    result.problems = {path: why(error) for path, error in problems.items()}
    return result


def predict_each(
    predictor: Predictor,
    reader: Reader,
    sources: Iterable[Source],
    batch_size: int,
    problems: dict[Path, BadStudyError | OSError],
) -> Iterator[Study]:
    """Yield each readable source with its prediction.

    The errors of the others go to ``problems``: a `BadStudyError` is a verdict on the content, such as a lateral view;
    an `OSError` says that the file could not be read now, which may pass.

    While the model works on a batch, the caller takes the studies of the one before, and the next is prepared.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="model") as thread:
        running: _Running | None = None
        readable = _readable(predictor, reader, sources, problems)
        while batch := list(islice(readable, batch_size)):
            prepared = predictor.prepare([radiograph.levels for _, radiograph in batch])
            names = [str(path) for path, _ in batch]
            started = _Running(batch, thread.submit(predictor.predict_prepared, prepared, None, names))
            if running:
                yield from running.studies()
            running = started
        if running:
            yield from running.studies()


class _Running(NamedTuple):
    """A batch on which the model is at work."""

    read: Sequence[tuple[Path, Radiograph]]
    predictions: Future[list[Prediction]]

    def studies(self) -> Iterator[Study]:
        """Wait for the model, and yield the batch's studies."""
        for (path, radiograph), prediction in zip(self.read, self.predictions.result(), strict=True):
            yield Study(path, radiograph, prediction)


def _readable(
    predictor: Predictor, reader: Reader, sources: Iterable[Source], problems: dict[Path, BadStudyError | OSError]
) -> Iterator[tuple[Path, Radiograph]]:
    for path, outcome in _read(reader, sources):
        accepted = _accepted(predictor, outcome)
        if isinstance(accepted, Radiograph):
            yield path, accepted
        else:
            problems[path] = accepted


def _accepted(predictor: Predictor, outcome: Outcome) -> Outcome:
    """Return the outcome; if its view is one that the model does not read, that error."""
    try:
        if isinstance(outcome, Radiograph):
            predictor.require_view(outcome.view)
    except BadStudyError as error:
        return error
    return outcome


def _read(reader: Reader, sources: Iterable[Source]) -> Iterator[tuple[Path, Outcome]]:
    paths: deque[Path] = deque()

    def contents() -> Iterator[Path | bytes]:
        for path, content in sources:
            paths.append(path)
            yield path if content is None else content

    for outcome in reader.read_each(contents()):
        yield paths.popleft(), outcome


def why(error: BadStudyError | OSError) -> str:
    """Return the reason on one line, without the file's name, which stands beside it."""
    return printable(error.strerror or error) if isinstance(error, OSError) else str(error)


def list_files(inputs: Sequence[Path]) -> list[Path]:
    """List the files to predict; odd entries of a folder are reported and passed over.

    Args:
        inputs: files, folders with images, or ``.txt`` files with a path on each line.

    Raises:
        UserError: an input does not exist, there is no image, or two files have the same name.
    """
    files: dict[str, Path] = {}
    empty: dict[Path, Listing] = {}
    for entry in _listed(inputs):
        if not entry.exists():
            raise UserError(f"{printable(entry)}: no such file or folder")
        for path in _of_folder(entry, empty) if entry.is_dir() else [entry]:
            if files.setdefault(study_name(path), path) != path:
                other = printable(files[study_name(path)])
                raise UserError(
                    f"{printable(path)}: has the same name as {other}; predictions are named after their files"
                )
    said = [
        f"{printable(entry)}: {NO_IMAGES}; the folder contains: {listing.described()}"
        for entry, listing in empty.items()
    ]
    if not files:
        raise UserError(said[0] if said else f"{printable(inputs[0])}: names no files")
    for line in said:
        logger.warning("passed over %s", line)
    return list(files.values())


def _of_folder(folder: Path, empty: dict[Path, Listing]) -> list[Path]:
    """Return the images of a folder; if it has none, its listing goes to ``empty``."""
    listing = list_folder(folder)
    images = listing.images()
    if not listing.files and not listing.pictures:
        empty[folder] = listing
        return []
    if listing.files and listing.pictures:
        count = len(listing.pictures)
        logger.warning("passed over %d PNG or JPEG files beside the DICOM files of %s", count, printable(folder))
    for path, reason in listing.odd.items():
        logger.warning("passed over %s: %s", printable(path), reason)
    return images


def _listed(inputs: Sequence[Path]) -> Iterator[Path]:
    """Yield the inputs; the paths in a list take the list's place."""
    for path in inputs:
        if path.suffix != LIST_SUFFIX or not path.is_file():
            yield path
            continue
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError:
            rule = "not a list of paths; a text file with one on each line is needed"
            raise UserError(f"{printable(path)}: {rule}") from None
        yield from (Path(line.strip()) for line in lines if line.strip())
