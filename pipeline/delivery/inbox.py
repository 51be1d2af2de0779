"""A folder into which studies arrive: each is scored once, whoever looks and however often."""

import csv
import hashlib
import io
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import numpy.typing as npt
from filelock import FileLock, Timeout

from pipeline.data.reader import Reader
from pipeline.delivery.batch import Source, Study, predict_each, why
from pipeline.delivery.predictor import Predictor
from pipeline.errors import BadStudyError, UserError
from pipeline.submission import prediction_string

SCORED = "scored.csv"
_COLUMNS = (
    "sha256", "file", "scored_at", "model", "image_score", "PredictionString", "problem",
    # What monitoring compares with the studies that the model was validated on.
    "view", "grey_mean", "grey_std", "findings",
)  # fmt: skip


@dataclass(frozen=True)
class InboxResult:
    """How many new files were scored and passed over, and how many have yet to settle."""

    scored: int
    passed_over: int
    unsettled: int


def score_inbox(
    predictor: Predictor, reader: Reader, model: str, inbox: Path, out: Path, batch_size: int, settle_seconds: float
) -> InboxResult:
    """Score the files of ``inbox`` whose content is not in ``out/scored.csv`` yet, and add a line for each.

    A file is known by its SHA-256: neither another name nor a second copy makes it new. Files that were
    changed within the last ``settle_seconds`` may still be arriving; they wait. The line is on the disk
    before the next batch begins, and half a line, after a kill, is dropped: its file is scored again.

    Raises:
        UserError: the folder does not exist, or another process is at work on ``out``.
    """
    if not inbox.is_dir():
        raise UserError(f"{inbox}: no such folder")
    out.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(out / ".scored.lock", timeout=0):
            return _score_new(predictor, reader, model, inbox, out / SCORED, batch_size, settle_seconds)
    except Timeout:
        raise UserError(f"{out / SCORED}: another process is writing to it; wait for it, or end it") from None


def _score_new(
    predictor: Predictor, reader: Reader, model: str, inbox: Path, table: Path, batch_size: int, settle_seconds: float
) -> InboxResult:
    known = _known(table)
    new: dict[Path, str] = {}
    unsettled = 0
    for path in sorted(inbox.rglob("*.dcm")):
        try:
            settled = time.time() - path.stat().st_mtime >= settle_seconds
            digest = _digest(path) if settled else ""
        except FileNotFoundError:
            continue  # moved away since it was listed
        if not settled:
            unsettled += 1
        elif digest not in known:
            known.add(digest)
            new[path] = digest
    paths, scored, passed_over = list(new), 0, 0
    for start in range(0, len(paths), batch_size):
        problems: dict[Path, BadStudyError | OSError] = {}
        sources = map(Source, paths[start : start + batch_size])
        done = predict_each(predictor, reader, sources, batch_size, problems)
        rows = [[new[study.path], *_row(study, model)] for study in done]
        scored += len(rows)
        rows += [
            [new[path], path.name, _now(), model, "", "", why(error), *[""] * 4] for path, error in problems.items()
        ]
        passed_over += len(problems)
        _append(table, rows)
    return InboxResult(scored, passed_over, unsettled)


def _row(study: Study, model: str) -> list[str]:
    found, pixels = study.prediction, study.radiograph.pixels
    text = prediction_string(found.boxes, found.scores)
    grey = [f"{value:.3f}" for value in grey_features(pixels)]
    score = f"{found.image_score:.6f}"
    count = str(len(found.scores))
    return [study.path.name, _now(), model, score, text, "", study.radiograph.view, *grey, count]


def grey_features(pixels: npt.NDArray[np.uint8]) -> tuple[float, float]:
    """Mean and standard deviation of an image's grey levels."""
    return float(pixels.mean()), float(pixels.std())


def _known(table: Path) -> set[str]:
    """The digests of the whole lines; half a line at the end is cut off."""
    if not table.exists():
        _append(table, [list(_COLUMNS)])
        return set()
    content = table.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        with table.open("rb+") as file:
            file.truncate(len(whole))
    rows = list(csv.reader(io.StringIO(whole.decode("utf-8"))))
    if not rows or tuple(rows[0]) != _COLUMNS:
        raise UserError(f"{table}: not a table of scored studies; move it away")
    return {row[0] for row in rows[1:] if row}


def _append(table: Path, rows: Sequence[Sequence[str]]) -> None:
    text = io.StringIO()
    # A name may hold a line break: a line of the table must be a line of the file.
    clean = [[" ".join(value.splitlines()) for value in row] for row in rows]
    csv.writer(text, lineterminator="\n").writerows(clean)
    with table.open("ab") as file:
        file.write(text.getvalue().encode("utf-8", "backslashreplace"))  # names may be any bytes
        file.flush()
        os.fsync(file.fileno())


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
