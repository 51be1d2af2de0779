"""Choice of the studies to review: those whose label may be wrong, on which models disagree, or where one is unsure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.metrics.results import Bools, Floats, ImageResult, pairwise_iou, thresholds_of

# Reason -> its meaning, in the order in which a study's first reason is chosen.
REASONS = {
    "missing box": "the model is sure of a box that has no label",
    "unfound box": "the model does not find a labelled box",
    "disagreement": "models give different probabilities",
    "uncertainty": "the model's probability is near one half",
}
# A detection and a labelled box of one class with less overlap are not one finding.
SAME_IOU = 0.3


@dataclass(frozen=True)
class Queued:
    """A study to look at, the reason, and the reason's value, 0 to 1; a higher value is more urgent."""

    study: str
    reason: str
    value: float


def uncertainty(class_scores: Floats) -> float:
    """Return 1 where a class's probability, of ``[K]``, is one half, and 0 where all are 0 or 1."""
    return float((1 - np.abs(2 * class_scores - 1)).max())


def disagreement(class_scores: Sequence[Floats]) -> float:
    """Return the largest difference between models in the probability of a class; each model gives ``[K]``."""
    return float(np.ptp(np.stack(class_scores), axis=0).max())


def unlabelled(result: ImageResult, thresholds: Sequence[float]) -> Bools:
    """Return which detections ``[N]`` are reported and overlap no true box of their class by `SAME_IOU`."""
    sure = result.scores > np.asarray(thresholds_of(thresholds))[result.labels]
    return np.asarray(sure & ~(_overlap(result) >= SAME_IOU).any(1))


def missing_box(result: ImageResult, thresholds: Sequence[float]) -> float:
    """Return the highest score of an `unlabelled` detection; 0 if there is none."""
    return float(result.scores[unlabelled(result, thresholds)].max(initial=0.0))


def unfound_box(result: ImageResult, thresholds: Sequence[float]) -> float:
    """Return 1 minus the score of the best detection of a true box, of the box that is found least.

    A box whose best detection is reported counts as found, and gives 0, as does an image without a box.
    """
    scores = np.where(_overlap(result) >= SAME_IOU, result.scores[:, None], 0.0).max(0, initial=0.0)  # (M,)
    unfound = scores <= np.asarray(thresholds_of(thresholds))[result.truth_labels]
    return float((1 - scores[unfound]).max(initial=0.0))


def _overlap(result: ImageResult) -> Floats:
    """Return the IoU of each detection with each true box of its class, ``[N, M]``; 0 for other classes."""
    same = result.labels[:, None] == result.truth_labels[None]
    return np.where(same, pairwise_iou(result.boxes, result.truth), 0.0)


def reasons(
    votes: Sequence[Floats], class_scores: Floats, judged: ImageResult | None, thresholds: Sequence[float]
) -> dict[str, float]:
    """Return the value of each reason that applies to a study.

    Args:
        votes: probabilities of the classes ``[K]`` from each model or network.
        class_scores: those of the first model, ``[K]``.
        judged: the labels and detections of a network that was not trained on them; None: there are none.
        thresholds: score above which a detection of each class is reported, ``[K]``.
    """
    values = {"uncertainty": uncertainty(class_scores)}
    if len(votes) > 1:
        values["disagreement"] = disagreement(votes)
    if judged is not None:
        values["missing box"] = missing_box(judged, thresholds)
        values["unfound box"] = unfound_box(judged, thresholds)
    return values


def choose(values: Mapping[str, Mapping[str, float]], count: int) -> list[Queued]:
    """Take the most urgent study of each reason in turn, until ``count`` studies are chosen; each study once.

    Args:
        values: study -> reason -> value. A value of 0 is no reason.
        count: number of studies.
    """
    queues = {
        reason: sorted((-own[reason], study) for study, own in values.items() if own.get(reason, 0) > 0)
        for reason in REASONS
    }
    chosen: dict[str, Queued] = {}
    while len(chosen) < count and any(queues.values()):
        for reason, waiting in queues.items():
            while waiting and waiting[0][1] in chosen:
                waiting.pop(0)
            if waiting and len(chosen) < count:
                value, study = waiting.pop(0)
                chosen[study] = Queued(study, reason, -value)
    return list(chosen.values())
