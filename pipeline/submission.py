"""The challenge's submission format: ``patientId,PredictionString``.

With several classes, the string lists the detections of each class behind its name: ``opacity: .9 10 20 30 40; nodule:
.8 50 60 20 20 .3 70 80 20 20``.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from pipeline.class_names import folded
from pipeline.errors import UserError
from pipeline.escaping import original_cell, printable, quoted
from pipeline.tables import is_missing, read_table

_FORMAT_OF_ONE = "confidence x y width height"
_FORMAT = f"PredictionString must be {_FORMAT_OF_ONE}, repeated"


def prediction_string(boxes: npt.ArrayLike, scores: npt.ArrayLike, digits: tuple[int, int] = (4, 1)) -> str:
    """Return ``confidence x y width height`` of each detection ``[N, 4]`` xyxy, in one string.

    ``digits`` are the numbers of decimal places of confidences and of pixels.
    """
    rows = zip(np.asarray(boxes, np.float64).reshape(-1, 4), np.asarray(scores).reshape(-1), strict=True)
    c, p = digits
    return " ".join(
        f"{score:.{c}f} {x0:.{p}f} {y0:.{p}f} {x1 - x0:.{p}f} {y1 - y0:.{p}f}" for (x0, y0, x1, y1), score in rows
    )


class Submitted(NamedTuple):
    """The detections of a study: ``boxes`` ``[N, 4]`` xyxy, ``scores`` ``[N]``, ``labels`` ``[N]``."""

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray


def labelled_string(
    boxes: npt.ArrayLike,
    scores: npt.ArrayLike,
    labels: npt.ArrayLike,
    classes: Sequence[str],
    digits: tuple[int, int] = (4, 1),
) -> str:
    """Return the `prediction_string`; with several classes, that of each class that has detections behind its name."""
    if len(classes) == 1:
        return prediction_string(boxes, scores, digits)
    box, score, own = np.asarray(boxes).reshape(-1, 4), np.asarray(scores), np.asarray(labels)
    found = [(name, own == label) for label, name in enumerate(classes) if (own == label).any()]
    return "; ".join(f"{name}: {prediction_string(box[rows], score[rows], digits)}" for name, rows in found)


def read_submission(path: Path, classes: Sequence[str] = ("",)) -> dict[str, Submitted]:
    """Return the detections of each study in a submission file; a label is a position in ``classes``.

    Raises:
        UserError: the file is missing or not such a table, a line is malformed, or has a class that is not in
            ``classes``; the message names the line.
    """
    table = read_table(path, ["patientId", "PredictionString"])
    name = printable(path)
    submission: dict[str, Submitted] = {}
    for line, key, text in zip(table.index, table["patientId"], table["PredictionString"], strict=True):
        if not key:
            raise UserError(f"{name} line {line}: no patientId; the id of a study is needed")
        key = original_cell(key)  # a file's name, if the prediction was written by us
        if key in submission:
            raise UserError(f"{name} line {line}: {quoted(key)} occurs twice; each study has one line")
        submission[key] = _detections(f"{name} line {line}", "" if is_missing(text) else text, classes)
    return submission


def _detections(place: str, text: str, classes: Sequence[str]) -> Submitted:
    """Parse a string with or without classes."""
    if ":" not in text:
        if text and len(classes) > 1:
            raise UserError(f"{place}: detections without a class; needed is `class: {_FORMAT_OF_ONE}; class: ...`")
        boxes, scores = _parse(place, text)
        return Submitted(boxes, scores, np.zeros(len(scores), np.int64))
    label_of = {folded(name): label for label, name in enumerate(classes)}
    parts = []
    for part in text.split(";"):
        name, _, numbers = part.partition(":")
        if folded(name) not in label_of:
            known = ", ".join(name for name in classes if name) or "no classes are known"
            raise UserError(f"{place}: class {quoted(name.strip())}: must be one of: {known}")
        boxes, scores = _parse(place, numbers)
        parts.append(Submitted(boxes, scores, np.full(len(scores), label_of[folded(name)])))
    return Submitted(*(np.concatenate(each) for each in zip(*parts, strict=True)))


def _parse(name: str, text: str) -> tuple[np.ndarray, np.ndarray]:
    try:
        if "_" in text or not text.isascii():  # Python reads 1_0 as 10, and accepts digits of any script
            raise ValueError
        numbers = np.array(text.split(), np.float64)
    except ValueError:
        raise UserError(
            f"{name}: {quoted(text)}: numbers only; PredictionString is confidence x y width height, repeated"
        ) from None
    if len(numbers) % 5:
        raise UserError(
            f"{name}: {len(numbers)} numbers; PredictionString must be confidence x y width height, repeated"
        )
    rows = numbers.reshape(-1, 5)
    if not np.isfinite(rows).all() or (rows[:, 3:] <= 0).any():
        raise UserError(f"{name}: {quoted(text)}: finite numbers with positive width and height only; {_FORMAT}")
    boxes = np.concatenate([rows[:, 1:3], rows[:, 1:3] + rows[:, 3:]], 1)
    return boxes, rows[:, 0]


def submission_table(
    keys: Sequence[str],
    boxes: Sequence[npt.ArrayLike],
    scores: Sequence[npt.ArrayLike],
    labels: Sequence[npt.ArrayLike],
    classes: Sequence[str],
    digits: tuple[int, int] = (4, 1),
) -> str:
    """Return the CSV text of a submission; ``digits`` as in `prediction_string`."""
    studies = zip(boxes, scores, labels, strict=True)
    strings = [labelled_string(*study, classes, digits) for study in studies]
    return pd.DataFrame({"patientId": list(keys), "PredictionString": strings}).to_csv(index=False)
