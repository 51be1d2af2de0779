"""The table of all test studies: outcome, scores, and the difference from the champion, with small pictures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.evaluation.outcomes import alarms
from pipeline.metrics.results import Floats, ImageResult, Thresholds, has_truth, reported
from pipeline.metrics.rsna_score import image_rsna_scores

# More pictures would make the page larger than 5 MB.
MOST_PICTURES = 300
OUTCOMES = {
    (True, True): "reported",
    (True, False): "missed",
    (False, True): "false alarm",
    (False, False): "nothing, rightly",
}


@dataclass(frozen=True)
class Case:
    """A test study.

    Attributes:
        patient_id: the study's id.
        group: its class in the data set.
        view: its projection; empty if it is not known.
        boxes: number of true boxes.
        found: number of reported detections.
        image_score: the probability of the image.
        rsna_score: its score; None if it does not count.
        outcome: one of `OUTCOMES`.
        champion: the champion's score of it; None without one, or if it does not count.
        picture: a picture as a data URI; empty: none.
    """

    patient_id: str
    group: str
    view: str
    boxes: int
    found: int
    image_score: float
    rsna_score: float | None
    outcome: str
    champion: float | None = None
    picture: str = ""

    @property
    def gain(self) -> float | None:
        """The score minus the champion's."""
        return None if self.rsna_score is None or self.champion is None else self.rsna_score - self.champion


def describe_cases(
    results: Sequence[ImageResult],
    thresholds: Thresholds,
    probabilities: Floats,
    studies: Sequence[tuple[str, str, str]],
    champion: Mapping[str, float],
) -> list[Case]:
    """Return a case for each study, without pictures.

    Args:
        results: detections and true boxes of each image.
        thresholds: of each class; detections above it are reported.
        probabilities: of each image, ``[I]``.
        studies: id, class and view of each image.
        champion: the champion's RSNA score of the studies that it was compared on.
    """
    scores, positive, alarm = image_rsna_scores(results, thresholds), has_truth(results), alarms(results, thresholds)
    return [
        Case(
            key,
            group,
            view,
            len(result.truth),
            int(reported(result, thresholds).sum()),
            float(probabilities[index]),
            None if np.isnan(scores[index]) else float(scores[index]),
            OUTCOMES[bool(positive[index]), bool(alarm[index])],
            champion.get(key),
        )
        for index, ((key, group, view), result) in enumerate(zip(studies, results, strict=True))
    ]


def most_telling(cases: Sequence[Case], count: int = MOST_PICTURES) -> list[int]:
    """Return the positions of the cases to show with a picture: mistakes first, then the lowest scores."""
    right = {"reported", "nothing, rightly"}
    order = sorted(
        range(len(cases)),
        key=lambda place: (cases[place].outcome in right, 1.0 if (score := cases[place].rsna_score) is None else score),
    )
    return order[:count]
