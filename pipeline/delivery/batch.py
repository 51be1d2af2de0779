"""Predict many DICOM files: batches, a progress bar, one line per study as it is done."""

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.progress import track

from pipeline.data.dicom import Radiograph, read_radiograph
from pipeline.data.discovery import Listing, list_folder, study_name
from pipeline.delivery.predictor import Prediction, Predictor
from pipeline.delivery.writers import Writer
from pipeline.errors import BadStudyError, UserError
from pipeline.escaping import printable

logger = logging.getLogger(__name__)

LIST_SUFFIX = ".txt"


@dataclass
class BatchResult:
    """How many studies and detections there are, and path -> reason of the files passed over."""

    predicted: int = 0
    detections: int = 0
    problems: dict[Path, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Study:
    """A file, what is in it, and what was found; ``key`` names it, since ids inside a file are not trusted."""

    path: Path
    radiograph: Radiograph
    prediction: Prediction

    @property
    def key(self) -> str:
        """The name of the file."""
        return study_name(self.path)


def predict_files(
    predictor: Predictor, files: Sequence[Path], batch_size: int, writers: Sequence[Writer]
) -> BatchResult:
    """Detect in every file, and give each study to the writers; of ten thousand files one batch is in memory."""
    result, console = BatchResult(), Console(stderr=True)
    shown = track(files, "Predicting", console=console, disable=not console.is_terminal)
    for study in predict_each(predictor, shown, batch_size, result.problems):
        for writer in writers:
            writer.write(study)
        result.predicted += 1
        result.detections += len(study.prediction.scores)
    return result


def predict_each(
    predictor: Predictor, files: Iterable[Path], batch_size: int, problems: dict[Path, str]
) -> Iterator[Study]:
    """Each readable file with its prediction; the others, with the reason, go to ``problems``."""
    paths: list[Path] = []
    radiographs: list[Radiograph] = []
    for path in files:
        try:
            radiographs.append(read_radiograph(path))
        except BadStudyError as error:
            problems[path] = str(error)
            continue
        paths.append(path)
        if len(paths) == batch_size:
            yield from _studies(predictor, paths, radiographs)
            paths, radiographs = [], []
    if paths:
        yield from _studies(predictor, paths, radiographs)


def _studies(predictor: Predictor, paths: list[Path], radiographs: list[Radiograph]) -> Iterator[Study]:
    found = predictor.predict([one.pixels for one in radiographs])
    yield from map(Study, paths, radiographs, found)


def list_files(inputs: Sequence[Path]) -> list[Path]:
    """The files that are meant; what is odd in a folder is reported and passed over.

    Args:
        inputs: files, folders whose DICOM files are meant, or ``.txt`` files with a path on each line.

    Raises:
        UserError: an input does not exist, there is no DICOM file, or two files have one name.
    """
    files: dict[str, Path] = {}
    empty: dict[Path, Listing] = {}
    for place in _listed(inputs):
        if not place.exists():
            raise UserError(f"{printable(place)}: no such file or folder")
        for path in _of_folder(place, empty) if place.is_dir() else [place]:
            if files.setdefault(study_name(path), path) != path:
                other = printable(files[study_name(path)])
                raise UserError(f"{printable(path)}: has the name of {other}; predictions are named by file")
    said = [f"{printable(place)}: no DICOM files; what is there: {found.described()}" for place, found in empty.items()]
    if not files:
        raise UserError(said[0] if said else f"{printable(inputs[0])}: names no files")
    for line in said:
        logger.warning("passed over %s", line)
    return list(files.values())


def _of_folder(folder: Path, empty: dict[Path, Listing]) -> list[Path]:
    """The DICOM files of a folder; without any, what is there goes to ``empty``."""
    listing = list_folder(folder)
    if not listing.files:
        empty[folder] = listing
        return []
    for path, reason in listing.odd.items():
        logger.warning("passed over %s: %s", printable(path), reason)
    return sorted([*listing.files, *listing.misnamed])


def _listed(inputs: Sequence[Path]) -> Iterator[Path]:
    """The inputs, with the paths that lists name in their place."""
    for place in inputs:
        if place.suffix != LIST_SUFFIX or not place.is_file():
            yield place
            continue
        try:
            lines = place.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError:
            raise UserError(f"{place}: not a list of paths; a text file with one on each line is needed") from None
        yield from (Path(line.strip()) for line in lines if line.strip())
