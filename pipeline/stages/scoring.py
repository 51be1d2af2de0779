"""Score anyone's submission file against a label table: file I/O around the evaluation."""

from pathlib import Path

from pipeline.data.annotations import GROUPS, LABELS, read_annotations, xyxy
from pipeline.errors import UserError
from pipeline.evaluation.results import image_result
from pipeline.evaluation.summary import Summary, summarize
from pipeline.submission import read_submission


def score_submission(predictions: Path, labels: Path, draws: int, seed: int) -> tuple[Summary, str]:
    """The metrics of a submission, and one line on what was scored.

    The studies that have a line in the submission are scored; an empty string means that nothing
    was found.

    Raises:
        UserError: a file is malformed, or the submission names a study that has no label.
    """
    if labels.name != LABELS:
        raise UserError(f"{labels}: must be named {LABELS}")
    annotations = read_annotations(labels.parent)
    if annotations.problems:
        key, reason = next(iter(annotations.problems.items()))
        raise UserError(f"{labels}: {key}: {reason}")
    found = read_submission(predictions)
    groups = dict(zip(annotations.studies["patientId"], annotations.studies["groupId"], strict=True))
    for key in found:
        if key not in groups:
            raise UserError(f"{predictions}: {key[:60]!r} has no label in {labels}")
    if not found:
        raise UserError(f"{predictions}: has no rows; one line per study is needed")
    results = []
    for (boxes, scores), truth in zip(found.values(), annotations.boxes_of(list(found)), strict=True):
        results.append(image_result(boxes, scores, xyxy(truth)))
    # Below every confidence: what is in a submission counts.
    lowest = min((float(scores.min()) for _, scores in found.values() if len(scores)), default=0.0) - 1.0
    summary = summarize(results, [groups[key] for key in found], lowest, draws, seed)
    missing = "" if (labels.parent / GROUPS).exists() else f"; no {GROUPS}, so each image counts as a patient"
    return summary, f"scored {len(found)} of the {len(groups)} labelled studies{missing}"
