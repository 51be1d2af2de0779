"""Predict many DICOM files: batches, a progress bar, one table and a picture per study."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.progress import track

from pipeline.data.dicom import Radiograph, read_radiograph
from pipeline.delivery.predictor import Prediction, Predictor
from pipeline.drawing import draw_boxes, encode_png
from pipeline.errors import BadStudyError, UserError
from pipeline.files import write_atomic, write_text
from pipeline.submission import submission_table

PICTURE_SIDE = 768


@dataclass
class BatchResult:
    """How many studies and detections there are, and path -> reason of the files passed over."""

    predicted: int = 0
    detections: int = 0
    problems: dict[Path, str] = field(default_factory=dict)


def predict_files(
    predictor: Predictor, inputs: Sequence[Path], out: Path, batch_size: int, *, pictures: bool
) -> BatchResult:
    """Detect in every file, or every ``.dcm`` file of the folders, and write ``out/predictions.csv``.

    A study is named by its file: ids inside a file are not trusted.

    Raises:
        UserError: an input does not exist, or two files have one name.
    """
    files = _list_files(inputs)
    result, keys, boxes, scores = BatchResult(), [], [], []
    for paths, radiographs in _batches(files, batch_size, result):
        for path, radiograph, prediction in zip(
            paths, radiographs, predictor.predict([one.pixels for one in radiographs]), strict=True
        ):
            keys.append(path.stem)
            boxes.append(prediction.boxes)
            scores.append(prediction.scores)
            result.predicted += 1
            result.detections += len(prediction.scores)
            if pictures:
                _write_picture(out / "pictures" / f"{path.stem}.png", radiograph, prediction)
    write_text(out / "predictions.csv", submission_table(keys, boxes, scores))
    return result


def _list_files(inputs: Sequence[Path]) -> list[Path]:
    files: dict[str, Path] = {}
    for place in inputs:
        if not place.exists():
            raise UserError(f"{place}: no such file or folder")
        for path in sorted(place.rglob("*.dcm")) if place.is_dir() else [place]:
            if files.setdefault(path.stem, path) != path:
                raise UserError(f"{path}: has the name of {files[path.stem]}; predictions are named by file")
    if not files:
        raise UserError(f"{inputs[0]}: no .dcm files")
    return list(files.values())


def _batches(
    files: Sequence[Path], batch_size: int, result: BatchResult
) -> Iterator[tuple[list[Path], list[Radiograph]]]:
    console = Console(stderr=True)
    paths: list[Path] = []
    radiographs: list[Radiograph] = []
    for path in track(files, "Predicting", console=console, disable=not console.is_terminal):
        try:
            radiographs.append(read_radiograph(path))
        except BadStudyError as error:
            result.problems[path] = str(error)
            continue
        paths.append(path)
        if len(paths) == batch_size:
            yield paths, radiographs
            paths, radiographs = [], []
    if paths:
        yield paths, radiographs


def _write_picture(path: Path, radiograph: Radiograph, prediction: Prediction) -> None:
    scale = min(1.0, PICTURE_SIDE / max(radiograph.pixels.shape))
    side = round(max(radiograph.pixels.shape) * scale)
    picture = draw_boxes(radiograph.pixels, prediction.boxes, prediction.scores, [], side)
    write_atomic(path, lambda temporary: temporary.write_bytes(encode_png(picture)))
