"""Scoring of any submission file against a label table: file I/O around the evaluation."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.assembly.detections import with_truth
from pipeline.data.annotations import GROUPS, Annotations, read_annotations
from pipeline.data.box_classes import LabelRules
from pipeline.data.geometry import xyxy
from pipeline.data.suggestions import likely_cause
from pipeline.errors import UserError
from pipeline.escaping import quoted
from pipeline.evaluation.comparison import known
from pipeline.evaluation.summary import Summary, summarize
from pipeline.metrics.bootstrap import Metrics, paired_difference
from pipeline.metrics.results import ImageResult, Thresholds, thresholds_of
from pipeline.submission import Submitted, read_submission
from pipeline.tables import read_table

Split = tuple[Path, str]
# Below every score, so that all detections of a submission count.
EVERYTHING = -math.inf


@dataclass(frozen=True)
class Scored:
    """The studies that are scored.

    Attributes:
        keys: ids of the studies.
        groups: the patient of each study.
        truth: the label table.
        note: a line that says how many studies were scored.
    """

    keys: list[str]
    groups: list[str]
    truth: Annotations
    note: str

    def results(self, submission: Mapping[str, Submitted]) -> list[ImageResult]:
        """Pair the detections with the true boxes."""
        truth = zip(self.keys, self.truth.boxes_of(self.keys), self.truth.labels_of(self.keys), strict=True)
        return [with_truth(submission[key], xyxy(boxes), labels) for key, boxes, labels in truth]


def score_submission(
    predictions: Path,
    labels: Path,
    draws: int,
    seed: int,
    score_thresh: Thresholds = EVERYTHING,
    split: Split | None = None,
    rules: LabelRules | None = None,
) -> tuple[Summary, str]:
    """Return the metrics of a submission, and a line that says how many studies were scored.

    The studies that have a line in the submission are scored; an empty string means that nothing was
    found. All detections count, but metrics that need a threshold use those above ``score_thresh``, one for all
    classes or one for each. ``split`` names a table of splits and the split to score. ``rules`` are those of the label
    table's classes.

    Raises:
        UserError: a file is malformed, or the submission names a study that has no label.
    """
    truth = _read_truth(labels, rules)
    submission = read_submission(predictions, truth.names)
    scored = _scored(predictions, list(submission), labels, truth, split)
    results, levels = scored.results(submission), _levels(score_thresh, truth.names)
    return summarize(results, scored.groups, levels, draws, seed, classes=truth.names), scored.note


def compare_submissions(
    predictions: Path,
    other: Path,
    labels: Path,
    draws: int,
    seed: int,
    score_thresh: Thresholds = EVERYTHING,
    split: Split | None = None,
    rules: LabelRules | None = None,
) -> tuple[dict[str, dict[str, float | None]], str]:
    """Return by how much the first submission is better than the other on the same studies, with 95 % intervals.

    Raises:
        UserError: as in `score_submission`; or the files name different studies.
    """
    truth = _read_truth(labels, rules)
    first, second = read_submission(predictions, truth.names), read_submission(other, truth.names)
    if first.keys() != second.keys():
        odd = next(iter(first.keys() ^ second.keys()))
        raise UserError(f"{other}: {quoted(odd)} is in only one of the two files; both must name the same studies")
    scored = _scored(predictions, list(first), labels, truth, split)
    levels = _levels(score_thresh, truth.names)
    mine, theirs = (Metrics(scored.results(submission), levels) for submission in (first, second))
    differences = paired_difference(mine, theirs, scored.groups, draws, seed)
    table = {
        key: dict(zip(("difference", "low", "high"), (known(value) for value in values), strict=True))
        for key, values in differences.items()
    }
    return table, scored.note


def _levels(score_thresh: Thresholds, classes: Sequence[str]) -> tuple[float, ...]:
    """Return a threshold for each class."""
    given = thresholds_of(score_thresh)
    if len(given) not in (1, len(classes)):
        raise UserError(f"{len(given)} score thresholds for {len(classes)} classes; give one, or one for each")
    return given if len(given) == len(classes) else given * len(classes)


def _read_truth(labels: Path, rules: LabelRules | None) -> Annotations:
    # Classes of studies do not matter here, and a class table in the same folder may belong to other labels.
    annotations = read_annotations(labels.parent, labels, rules=rules, with_classes=False)
    if annotations.problems:
        key, reason = next(iter(annotations.problems.items()))
        raise UserError(f"{labels}: {key}: {reason}")
    return annotations


def _scored(predictions: Path, keys: list[str], labels: Path, annotations: Annotations, split: Split | None) -> Scored:
    groups = dict(zip(annotations.studies["patientId"], annotations.studies["groupId"], strict=True))
    _require_labels(predictions, keys, groups, labels)
    if split:
        wanted = _of_split(*split)
        keys = [key for key in keys if key in wanted]
    if not keys:
        raise UserError(f"{predictions}: has no rows to score; one line per study is needed")
    missing = "" if annotations.grouped else f"; no {GROUPS}, so each image counts as a patient"
    note = f"scored {len(keys)} of the {len(groups)} labelled studies{missing}"
    return Scored(keys, [groups[key] for key in keys], annotations, note)


def _require_labels(predictions: Path, keys: Sequence[str], groups: Mapping[str, str], labels: Path) -> None:
    lacking = [key for key in keys if key not in groups]
    if lacking:
        hint = likely_cause(lacking, groups.keys() - set(keys))(lacking[0])
        raise UserError(f"{predictions}: {quoted(lacking[0])} has no label in {labels}{hint and f'; {hint}'}")


def _of_split(path: Path, name: str) -> set[str]:
    table = read_table(path, ["patientId", "split"])
    wanted = set(table.loc[table["split"] == name, "patientId"])
    if not wanted:
        names = ", ".join(quoted(one, 20) for one in sorted(set(table["split"]))[:6])
        raise UserError(f"{path}: no study is in the split {quoted(name)}; the table has {names or 'no rows'}")
    return wanted
