"""What becomes of predictions: a table, pictures, COCO's JSON. Each is whole or absent when all is done."""

import csv
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TextIO

from pipeline.drawing import draw_boxes, encode_png
from pipeline.files import sync_file, write_atomic
from pipeline.submission import prediction_string

if TYPE_CHECKING:
    from pipeline.delivery.batch import Study

PICTURE_SIDE = 768


class Writer(Protocol):
    """Takes studies one by one."""

    def write(self, study: "Study") -> None:
        """Take a study."""


@contextmanager
def _whole(path: Path) -> Iterator[TextIO]:
    """A file that grows beside ``path`` and takes its name at the end; after an error there is none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
            yield file
        sync_file(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


class _Table:
    def __init__(self, file: TextIO) -> None:
        self._rows = csv.writer(file, lineterminator="\n")
        self._rows.writerow(["patientId", "PredictionString"])

    def write(self, study: "Study") -> None:
        found = study.prediction
        self._rows.writerow([study.key, prediction_string(found.boxes, found.scores)])


@contextmanager
def table_writer(path: Path) -> Iterator[Writer]:
    """The challenge's submission format."""
    with _whole(path) as file:
        yield _Table(file)


class PictureWriter:
    """A PNG of each study with its detections."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def write(self, study: "Study") -> None:
        """Draw a study."""
        pixels, found = study.radiograph.pixels, study.prediction
        side = round(max(pixels.shape) * min(1.0, PICTURE_SIDE / max(pixels.shape)))
        picture = encode_png(draw_boxes(pixels, found.boxes, found.scores, [], side))
        write_atomic(self._folder / f"{study.key}.png", lambda temporary: temporary.write_bytes(picture))


class _Coco:
    """One object; its images and annotations grow in two files, since either may be long."""

    def __init__(self, images: TextIO, annotations: TextIO) -> None:
        self._images, self._annotations = images, annotations
        self._studies = self._boxes = 0

    def write(self, study: "Study") -> None:
        height, width = study.radiograph.pixels.shape
        image = {"id": self._studies + 1, "file_name": study.path.name, "height": height, "width": width}
        self._images.write((",\n" if self._studies else "") + json.dumps(image))
        self._studies += 1
        for (x0, y0, x1, y1), score in zip(study.prediction.boxes, study.prediction.scores, strict=True):
            box = [round(float(value), 2) for value in (x0, y0, x1 - x0, y1 - y0)]
            annotation = {"id": self._boxes + 1, "image_id": self._studies, "category_id": 1, "bbox": box}
            annotation |= {"area": round(box[2] * box[3], 2), "score": round(float(score), 6), "iscrowd": 0}
            self._annotations.write((",\n" if self._boxes else "") + json.dumps(annotation))
            self._boxes += 1


@contextmanager
def coco_writer(path: Path) -> Iterator[Writer]:
    """COCO's JSON of a data set, with a ``score`` for each annotation."""
    path.parent.mkdir(parents=True, exist_ok=True)
    parts = [path.with_name(f".{path.name}.{name}.{os.getpid()}.tmp") for name in ("images", "annotations")]
    try:
        with parts[0].open("w", encoding="utf-8") as images, parts[1].open("w", encoding="utf-8") as annotations:
            yield _Coco(images, annotations)
        with _whole(path) as file:
            file.write('{"categories": [{"id": 1, "name": "lung opacity"}],\n"images": [\n')
            _copy(parts[0], file)
            file.write('],\n"annotations": [\n')
            _copy(parts[1], file)
            file.write("]}\n")
    finally:
        for part in parts:
            part.unlink(missing_ok=True)


def _copy(source: Path, target: TextIO) -> None:
    with source.open(encoding="utf-8") as file:
        for line in file:
            target.write(line)
