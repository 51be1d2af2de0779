"""The metrics by which epochs are compared."""

from collections.abc import Mapping, Sequence

import numpy as np

from pipeline.assembly.inputs import SplitData
from pipeline.detection.postprocess import Detections
from pipeline.metrics.matching import IOU_THRESHOLDS
from pipeline.metrics.ranking import average_precision, rank_detections
from pipeline.metrics.results import ImageResult, image_result
from pipeline.metrics.rsna_score import best_threshold


def results_in_prepared_pixels(detections: Sequence[Detections], data: SplitData) -> list[ImageResult]:
    """Pair the detections with the true boxes, both in pixels of the prepared images."""
    return [
        image_result(one["boxes"].numpy(), one["scores"].numpy(), boxes)
        for one, boxes in zip(detections, data.prepared_boxes(), strict=True)
    ]


def val_metrics(detections: Sequence[Detections], data: SplitData) -> dict[str, float]:
    """Compute the metrics that compare epochs: COCO's mAP, and the RSNA score at the threshold that is best for it."""
    results = results_in_prepared_pixels(detections, data)
    threshold, score = best_threshold(results)
    precision = average_precision(rank_detections(results), np.ones((1, len(results))))[0]  # (T,)
    return {
        "map": float(precision.mean()),
        "map_50": float(precision[IOU_THRESHOLDS == 0.5].item()),
        "map_75": float(precision[IOU_THRESHOLDS == 0.75].item()),
        "rsna_score": score,
        "best_threshold": threshold,
    }


def epoch_score(values: Mapping[str, float]) -> float:
    """Return the metric of `val_metrics` by which the best epoch is chosen."""
    return values["map"]
