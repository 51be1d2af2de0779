"""The metrics by which epochs are compared."""

from collections.abc import Mapping, Sequence

import numpy as np

from pipeline.assembly.inputs import SplitData
from pipeline.detection.postprocess import Detections
from pipeline.metrics.matching import IOU_THRESHOLDS
from pipeline.metrics.ranking import average_precision, rank_detections
from pipeline.metrics.results import ImageResult, each_class, image_result
from pipeline.metrics.rsna_score import best_threshold, mean_of_known

BEST = "best_threshold"


def results_in_prepared_pixels(detections: Sequence[Detections], data: SplitData) -> list[ImageResult]:
    """Pair the detections with the true boxes, both in pixels of the prepared images."""
    return [
        image_result(one["boxes"].numpy(), one["scores"].numpy(), boxes, one["labels"].numpy(), labels)
        for one, boxes, labels in zip(detections, data.prepared_boxes(), data.labels, strict=True)
    ]


def val_metrics(detections: Sequence[Detections], data: SplitData) -> dict[str, float]:
    """Compute the metrics that compare epochs: COCO's mAP, and the RSNA score at the threshold that is best for it.

    With several classes, they are means over the classes, and each class has its own ``best_threshold``.
    """
    parts = each_class(results_in_prepared_pixels(detections, data), len(data.classes))
    each = [_of_one_class(part) for part in parts]
    means = {key: float(mean_of_known(np.array([[one[key]] for one in each]))[0]) for key in each[0]}
    thresholds = {key: one[BEST] for key, one in zip(threshold_keys(data.classes), each, strict=True)}
    return {key: value for key, value in means.items() if key != BEST} | thresholds


def threshold_keys(classes: Sequence[str]) -> list[str]:
    """Return the keys under which `val_metrics` has the best threshold of each class."""
    return [BEST] if len(classes) == 1 else [f"{BEST}/{name}" for name in classes]


def _of_one_class(results: Sequence[ImageResult]) -> dict[str, float]:
    threshold, score = best_threshold(results)
    precision = average_precision(rank_detections(results), np.ones((1, len(results))))[0]  # (T,)
    return {
        "map": float(precision.mean()),
        "map_50": float(precision[IOU_THRESHOLDS == 0.5].item()),
        "map_75": float(precision[IOU_THRESHOLDS == 0.75].item()),
        "rsna_score": score if any(len(result.truth) for result in results) else float("nan"),
        BEST: threshold,
    }


def epoch_score(values: Mapping[str, float]) -> float:
    """Return the metric of `val_metrics` by which the best epoch is chosen."""
    return values["map"]
