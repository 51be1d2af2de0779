"""Writers of predictions: a table, pictures and COCO's JSON. Each output file is whole or absent in the end.

The outputs contain file names, which often enough name persons: only their owner can read them.
"""

import csv
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from pipeline.delivery.batch import Study, Writer
from pipeline.escaping import safe_cell
from pipeline.files import open_atomic, temporary_folder, write_atomic
from pipeline.reports.drawing import captions, draw_boxes, encode_jpeg

PICTURE_SIDE = 768


def private_folder(folder: Path) -> Path:
    """Create ``folder`` if it is missing, open to its owner only, because the names of its files are private, too."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


class _Table:
    def __init__(self, file: TextIO) -> None:
        self._rows = csv.writer(file, lineterminator="\n")
        self._rows.writerow(["patientId", "PredictionString"])

    def write(self, study: Study) -> None:
        self._rows.writerow([safe_cell(study.key), study.prediction.text()])


@contextmanager
def table_writer(path: Path) -> Iterator[Writer]:
    """Yield a writer of the challenge's submission format."""
    with open_atomic(path, private=True) as file:
        yield _Table(file)


class PictureWriter:
    """A writer of one JPEG file for each study, with its detections."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def write(self, study: Study) -> None:
        """Draw a study."""
        pixels, prediction = study.radiograph.pixels, study.prediction
        side = round(max(pixels.shape) * min(1.0, PICTURE_SIDE / max(pixels.shape)))
        names = captions(prediction.labels, prediction.classes)
        drawn = draw_boxes(pixels, prediction.boxes, prediction.scores, [], side, names)
        picture = encode_jpeg(drawn, fine=True)
        path = private_folder(self._folder) / f"{study.key}.jpg"
        write_atomic(path, lambda temporary: temporary.write_bytes(picture), private=True)


class _Coco:
    """A COCO object; its images and annotations grow in two files, because either may be long."""

    def __init__(self, images: TextIO, annotations: TextIO) -> None:
        self._images, self._annotations = images, annotations
        self._studies = self._boxes = 0

    def write(self, study: Study) -> None:
        height, width = study.radiograph.pixels.shape
        image = {"id": self._studies + 1, "file_name": study.path.name, "height": height, "width": width}
        self._images.write((",\n" if self._studies else "") + json.dumps(image))
        self._studies += 1
        found = study.prediction
        for (x0, y0, x1, y1), score, label in zip(found.boxes, found.scores, found.labels, strict=True):
            box = [round(float(value), 2) for value in (x0, y0, x1 - x0, y1 - y0)]
            numbers = {"id": self._boxes + 1, "image_id": self._studies, "category_id": int(label) + 1}
            annotation = {**numbers, "bbox": box}
            annotation |= {"area": round(box[2] * box[3], 2), "score": round(float(score), 6), "iscrowd": 0}
            self._annotations.write((",\n" if self._boxes else "") + json.dumps(annotation))
            self._boxes += 1


@contextmanager
def coco_writer(path: Path, classes: Sequence[str]) -> Iterator[Writer]:
    """Yield a writer of COCO's JSON of a data set, with a ``score`` for each annotation."""
    categories = json.dumps([{"id": number, "name": name} for number, name in enumerate(classes, start=1)])
    path.parent.mkdir(parents=True, exist_ok=True)
    with temporary_folder(path.parent) as folder:
        parts = [folder / name for name in ("images", "annotations")]
        with parts[0].open("w", encoding="utf-8") as images, parts[1].open("w", encoding="utf-8") as annotations:
            yield _Coco(images, annotations)
        with open_atomic(path, private=True) as file:
            file.write(f'{{"categories": {categories},\n"images": [\n')
            _copy(parts[0], file)
            file.write('],\n"annotations": [\n')
            _copy(parts[1], file)
            file.write("]}\n")


def _copy(source: Path, target: TextIO) -> None:
    with source.open(encoding="utf-8") as file:
        for line in file:
            target.write(line)
