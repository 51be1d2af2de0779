"""The challenge's submission format: ``patientId,PredictionString``."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from pipeline.errors import UserError


def prediction_string(boxes: npt.ArrayLike, scores: npt.ArrayLike, digits: tuple[int, int] = (4, 1)) -> str:
    """``confidence x y width height`` of each detection ``[N, 4]`` xyxy, in one string.

    ``digits`` are those after the point, of confidences and of pixels.
    """
    rows = zip(np.asarray(boxes, np.float64).reshape(-1, 4), np.asarray(scores).reshape(-1), strict=True)
    c, p = digits
    return " ".join(
        f"{score:.{c}f} {x0:.{p}f} {y0:.{p}f} {x1 - x0:.{p}f} {y1 - y0:.{p}f}" for (x0, y0, x1, y1), score in rows
    )


def read_submission(path: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Boxes ``[N, 4]`` xyxy and scores ``[N]`` of each study of a submission file.

    Raises:
        UserError: the file is missing, not such a table, or a line is malformed; names the line.
    """
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (pd.errors.EmptyDataError, pd.errors.ParserError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a CSV table: {' '.join(str(error).split())}") from None
    for column in ("patientId", "PredictionString"):
        if column not in table:
            raise UserError(f"{path}: column {column!r} is missing; needs patientId, PredictionString")
    found: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for line, (key, text) in enumerate(zip(table["patientId"], table["PredictionString"], strict=True), start=2):
        if key in found:
            raise UserError(f"{path} line {line}: {key[:60]!r} is there twice; one line per study")
        found[key] = _parse(f"{path} line {line}", text)
    return found


def _parse(place: str, text: str) -> tuple[np.ndarray, np.ndarray]:
    try:
        numbers = np.array(text.split(), np.float64)
    except ValueError:
        raise UserError(f"{place}: {text[:60]!r}: numbers only, confidence x y width height repeated") from None
    if len(numbers) % 5:
        raise UserError(f"{place}: {len(numbers)} numbers; must be confidence x y width height, repeated")
    rows = numbers.reshape(-1, 5)
    if not np.isfinite(rows).all() or (rows[:, 3:] <= 0).any():
        raise UserError(f"{place}: {text[:60]!r}: finite numbers with positive width and height only")
    boxes = np.concatenate([rows[:, 1:3], rows[:, 1:3] + rows[:, 3:]], 1)
    return boxes, rows[:, 0]


def submission_table(
    keys: Sequence[str],
    boxes: Sequence[npt.ArrayLike],
    scores: Sequence[npt.ArrayLike],
    digits: tuple[int, int] = (4, 1),
) -> str:
    """The CSV text of a submission; ``digits`` as of `prediction_string`."""
    strings = [prediction_string(box, score, digits) for box, score in zip(boxes, scores, strict=True)]
    return pd.DataFrame({"patientId": list(keys), "PredictionString": strings}).to_csv(index=False)
