"""The challenge's submission format: ``patientId,PredictionString``."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from pipeline.errors import UserError
from pipeline.escaping import original_cell, printable, quoted
from pipeline.tables import is_missing, read_table

_FORMAT = "PredictionString must be confidence x y width height, repeated"


def prediction_string(boxes: npt.ArrayLike, scores: npt.ArrayLike, digits: tuple[int, int] = (4, 1)) -> str:
    """Return ``confidence x y width height`` of each detection ``[N, 4]`` xyxy, in one string.

    ``digits`` are the numbers of decimal places of confidences and of pixels.
    """
    rows = zip(np.asarray(boxes, np.float64).reshape(-1, 4), np.asarray(scores).reshape(-1), strict=True)
    c, p = digits
    return " ".join(
        f"{score:.{c}f} {x0:.{p}f} {y0:.{p}f} {x1 - x0:.{p}f} {y1 - y0:.{p}f}" for (x0, y0, x1, y1), score in rows
    )


def read_submission(path: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return the boxes ``[N, 4]`` xyxy and scores ``[N]`` of each study in a submission file.

    Raises:
        UserError: the file is missing or not such a table, or a line is malformed; the message names the line.
    """
    table = read_table(path, ["patientId", "PredictionString"])
    name = printable(path)
    submission: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for line, key, text in zip(table.index, table["patientId"], table["PredictionString"], strict=True):
        if not key:
            raise UserError(f"{name} line {line}: no patientId; the id of a study is needed")
        key = original_cell(key)  # a file's name, if the prediction was written by us
        if key in submission:
            raise UserError(f"{name} line {line}: {quoted(key)} occurs twice; each study has one line")
        submission[key] = _parse(f"{name} line {line}", "" if is_missing(text) else text)
    return submission


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
    digits: tuple[int, int] = (4, 1),
) -> str:
    """Return the CSV text of a submission; ``digits`` as in `prediction_string`."""
    strings = [prediction_string(box, score, digits) for box, score in zip(boxes, scores, strict=True)]
    return pd.DataFrame({"patientId": list(keys), "PredictionString": strings}).to_csv(index=False)
