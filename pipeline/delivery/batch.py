"""Predict many DICOM files: batches, a progress bar, one line per study as it is done."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.progress import track

from pipeline.data.dicom import Radiograph, read_radiograph
from pipeline.delivery.predictor import Prediction, Predictor
from pipeline.delivery.writers import Writer
from pipeline.errors import BadStudyError, UserError

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
        return self.path.stem


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
    found = predictor.predict([one.pixels for one in radiographs], names=[str(path) for path in paths])
    yield from map(Study, paths, radiographs, found)


def list_files(inputs: Sequence[Path]) -> list[Path]:
    """The files that are meant.

    Args:
        inputs: files, folders whose ``.dcm`` files are meant, or ``.txt`` files with a path on each line.

    Raises:
        UserError: an input does not exist, or two files have one name.
    """
    files: dict[str, Path] = {}
    for place in _listed(inputs):
        if not place.exists():
            raise UserError(f"{place}: no such file or folder")
        for path in sorted(place.rglob("*.dcm")) if place.is_dir() else [place]:
            if files.setdefault(path.stem, path) != path:
                raise UserError(f"{path}: has the name of {files[path.stem]}; predictions are named by file")
    if not files:
        raise UserError(f"{inputs[0]}: no .dcm files")
    return list(files.values())


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
