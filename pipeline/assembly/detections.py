"""Detections in files of the challenge's format, and the results for metrics that are made of them."""

from collections.abc import Sequence

import numpy as np

from pipeline.metrics.results import ImageResult, image_result
from pipeline.submission import Submitted, submission_table


def with_truth(found: Submitted, truth: np.ndarray, labels: np.ndarray) -> ImageResult:
    """Pair detections that were read from a file with the true boxes ``[M, 4]`` xyxy and their labels ``[M]``."""
    return image_result(found.boxes, found.scores, truth, found.labels, labels)


def results_table(
    keys: Sequence[str], results: Sequence[ImageResult], classes: Sequence[str], digits: tuple[int, int] = (4, 1)
) -> str:
    """Return the CSV text with each study's detections; ``digits`` as in `prediction_string`."""
    boxes, scores = [one.boxes for one in results], [one.scores for one in results]
    return submission_table(keys, boxes, scores, [one.labels for one in results], classes, digits)
