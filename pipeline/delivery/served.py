"""A model that answers requests within limits: rows in, detections out. All servers of the model use it."""

import base64
import binascii
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.data.reader import Reader
from pipeline.delivery.predictor import Prediction, Predictor
from pipeline.delivery.serving_limits import ServingLimits
from pipeline.dicom.levels import Levels
from pipeline.dicom.radiograph import MAX_FILE_BYTES, MAX_PIXELS
from pipeline.errors import BadStudyError

Answer = dict[str, Any]

DICOM, IMAGE = "dicom", "image"


@dataclass
class RequestError(Exception):
    """The refusal of a request: the HTTP status, and a message that quotes nothing of the request."""

    status: int
    message: str

    def __str__(self) -> str:
        return self.message


class ServedModel:
    """A model that answers the rows of requests; any number of threads may call it at once."""

    def __init__(self, predictor: Predictor, reader: Reader, limits: ServingLimits) -> None:
        self._predictor = predictor
        self._reader = reader
        self.limits = limits
        self._turns = threading.BoundedSemaphore(predictor.single_images_at_once)

    def answer(self, rows: Iterable[Mapping[str, Any]]) -> list[Answer]:
        """Return the detections of each row, one row after another: a study in ``dicom``, or pixels in ``image``.

        Raises:
            RequestError: a row cannot be used or is too large, or there are no rows or too many.
        """
        rows = list(rows)
        if not 1 <= len(rows) <= self.limits.max_rows:
            raise RequestError(400, f"{len(rows)} rows; must be 1 to {self.limits.max_rows}")
        end = time.monotonic() + self.limits.request_seconds
        answers = []
        for number, row in enumerate(rows):
            if time.monotonic() > end:
                raise RequestError(
                    400, f"row {number}: not begun; {self.limits.request_seconds:g} s of a request are over"
                )
            levels = self._levels(number, row)
            with self._turns:
                (prediction,) = self._predictor.predict([levels])
            answers.append(_answer(prediction))
        return answers

    def _levels(self, number: int, row: Mapping[str, Any]) -> Levels:
        text, image = row.get(DICOM), row.get(IMAGE)
        if (text is None) == (image is None):
            raise RequestError(
                400, f"row {number}: needs either '{DICOM}', a base64 file, or '{IMAGE}', rows of pixels"
            )
        if text is None:
            return _pixels(number, image)
        try:
            radiograph = self._reader.read(_content(number, text))
            self._predictor.require_view(radiograph.view)
            return radiograph.levels
        except BadStudyError as error:
            raise RequestError(400, f"row {number}: {error}") from None


def _answer(prediction: Prediction) -> Answer:
    """Return the answer of a row; with several classes, with the class of each box, and the score of each class."""
    answer: Answer = {
        "PredictionString": prediction.text(),
        "image_score": prediction.image_score,
        "boxes": prediction.boxes.round(3).tolist(),
        "scores": prediction.scores.round(6).tolist(),
    }
    if len(prediction.classes) > 1:
        answer["classes"] = [prediction.classes[label] for label in prediction.labels]
        scores = zip(prediction.classes, prediction.class_scores.round(6).tolist(), strict=True)
        answer["class_scores"] = dict(scores)
    return answer


def _content(number: int, text: object) -> bytes:
    try:
        content = base64.b64decode(text, validate=True) if isinstance(text, str) else None
    except (binascii.Error, ValueError):
        content = None
    if content is None:
        raise RequestError(400, f"row {number}: '{DICOM}' is not base64 text")
    if len(content) > MAX_FILE_BYTES:
        raise RequestError(400, f"row {number}: {len(content)} bytes; at most {MAX_FILE_BYTES} are accepted")
    return content


def _pixels(number: int, rows: object) -> npt.NDArray[np.uint8]:
    """Convert rows of grey levels to an image."""
    needed = f"row {number}: '{IMAGE}' must be rows of as many whole numbers each, from 0 to 255"
    # Checked before NumPy sees them: from two texts of different lengths, NumPy makes an array of twice the longer one.
    if not isinstance(rows, list) or not all(isinstance(row, list) and {*map(type, row)} <= {int} for row in rows):
        raise RequestError(400, needed)
    try:
        levels = np.array([np.array(row, np.int64) for row in rows])
    except (ValueError, OverflowError):
        raise RequestError(400, needed) from None
    if levels.ndim != 2:
        raise RequestError(400, needed)
    if not 1 <= levels.size <= MAX_PIXELS:
        raise RequestError(400, f"row {number}: '{IMAGE}' has {levels.size} pixels; must be 1 to {MAX_PIXELS}")
    if levels.min() < 0 or levels.max() > 255:
        raise RequestError(400, needed)
    if levels.min() == levels.max():
        raise RequestError(400, f"row {number}: all pixels have one value")
    return levels.astype(np.uint8)
