"""Score anyone's submission file against a label table: file I/O around the evaluation."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from pipeline.data.annotations import GROUPS, LABELS, Annotations, read_annotations, xyxy
from pipeline.errors import UserError
from pipeline.evaluation.bootstrap import Metrics, paired_difference
from pipeline.evaluation.comparison import known
from pipeline.evaluation.results import ImageResult, image_result
from pipeline.evaluation.summary import Summary, summarize
from pipeline.submission import read_submission


@dataclass(frozen=True)
class Scored:
    """The studies that are scored.

    Attributes:
        keys: which.
        groups: the patient of each.
        truth: label table.
        note: a line on what was scored.
    """

    keys: list[str]
    groups: list[str]
    truth: Annotations
    note: str

    def results(self, found: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> list[ImageResult]:
        """Detections beside the true boxes."""
        boxes = self.truth.boxes_of(self.keys)
        return [image_result(*found[key], xyxy(truth)) for key, truth in zip(self.keys, boxes, strict=True)]


def score_submission(
    predictions: Path,
    labels: Path,
    draws: int,
    seed: int,
    score_thresh: float | None = None,
    split: tuple[Path, str] | None = None,
) -> tuple[Summary, str]:
    """The metrics of a submission, and one line on what was scored.

    The studies that have a line in the submission are scored; an empty string means that nothing was
    found. All its detections count, or those above ``score_thresh`` for the metrics that need one.
    ``split`` names a table of splits and the one to score.

    Raises:
        UserError: a file is malformed, or the submission names a study that has no label.
    """
    found = read_submission(predictions)
    scored = _scored(predictions, list(found), labels, split)
    threshold = _below_all(found) if score_thresh is None else score_thresh
    return summarize(scored.results(found), scored.groups, threshold, draws, seed), scored.note


def compare_submissions(
    predictions: Path, other: Path, labels: Path, draws: int, seed: int
) -> tuple[dict[str, dict[str, float | None]], str]:
    """By how much the first submission is better than the other on the studies of both, with 95 % intervals.

    Raises:
        UserError: as `score_submission`; or the files name different studies.
    """
    first, second = read_submission(predictions), read_submission(other)
    if first.keys() != second.keys():
        odd = next(iter(first.keys() ^ second.keys()))
        raise UserError(f"{other}: {odd[:60]!r} is in only one of the two files; both must name the same studies")
    scored = _scored(predictions, list(first), labels, None)
    mine, theirs = (Metrics(scored.results(found), _below_all(found)) for found in (first, second))
    differences = paired_difference(mine, theirs, scored.groups, draws, seed)
    table = {
        key: dict(zip(("difference", "low", "high"), (known(value) for value in values), strict=True))
        for key, values in differences.items()
    }
    return table, scored.note


def _scored(predictions: Path, keys: list[str], labels: Path, split: tuple[Path, str] | None) -> Scored:
    if labels.name != LABELS:
        raise UserError(f"{labels}: must be named {LABELS}")
    annotations = read_annotations(labels.parent)
    if annotations.problems:
        key, reason = next(iter(annotations.problems.items()))
        raise UserError(f"{labels}: {key}: {reason}")
    groups = dict(zip(annotations.studies["patientId"], annotations.studies["groupId"], strict=True))
    for key in keys:
        if key not in groups:
            raise UserError(f"{predictions}: {key[:60]!r} has no label in {labels}")
    if split:
        wanted = _of_split(*split)
        keys = [key for key in keys if key in wanted]
    if not keys:
        raise UserError(f"{predictions}: has no rows to score; one line per study is needed")
    missing = "" if (labels.parent / GROUPS).exists() else f"; no {GROUPS}, so each image counts as a patient"
    note = f"scored {len(keys)} of the {len(groups)} labelled studies{missing}"
    return Scored(keys, [groups[key] for key in keys], annotations, note)


def _of_split(path: Path, name: str) -> set[str]:
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
        wanted = set(table.loc[table["split"] == name, "patientId"])
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{path}: not a table of splits: {' '.join(str(error).split())}") from None
    if not wanted:
        raise UserError(f"{path}: no study is in the split {name!r}")
    return wanted


def _below_all(found: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> float:
    """A threshold that every detection passes: what is in a submission counts."""
    return min((float(scores.min()) for _, scores in found.values() if len(scores)), default=0.0) - 1.0
