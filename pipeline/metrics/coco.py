"""COCO average precision, computed by faster-coco-eval."""

import contextlib
import io
from collections.abc import Sequence

import numpy as np

from pipeline.metrics.matching import IOU_THRESHOLDS
from pipeline.metrics.results import ImageResult

# In the order of the library's statistics.
KEYS = ("map", "map_50", "map_75", "map_small", "map_medium", "map_large", "mar_1", "mar_10", "mar_100")


def coco_metrics(results: Sequence[ImageResult]) -> dict[str, float]:
    """Compute COCO's metrics over images of one class. Sizes are COCO's: areas split at 32 x 32 and 96 x 96 pixels.

    Returns:
        ``map`` (IoU .50 to .95), ``map_50``, ``map_75``, the same for small, medium and large boxes, and the
        mean recall ``mar_1``, ``mar_10`` and ``mar_100`` with at most 1, 10 and 100 detections per image.
        0 when there is no detection, NaN when there is no true box (of this size).
    """
    if not any(len(result.truth) for result in results):
        return dict.fromkeys(KEYS, float("nan"))
    from faster_coco_eval import COCO, COCOeval_faster

    # The library prints its progress.
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        truth = COCO(_truth(results))
        # It cannot load an empty list. A detection of score 0 that matches no box stands in, and changes no metric.
        found = truth.loadRes(_detections(results) or [_NOTHING])
        evaluation = COCOeval_faster(truth, found, "bbox", print_function=lambda *_: None)
        evaluation.params.iouThrs = IOU_THRESHOLDS  # the library's own .9 is not exactly .9
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    values = (float(value) for value in evaluation.stats)
    return {key: float("nan") if value < 0 else value for key, value in zip(KEYS, values, strict=False)}


_NOTHING = {"image_id": 0, "category_id": 1, "bbox": [-2.0, -2.0, 1.0, 1.0], "score": 0.0}


def _truth(results: Sequence[ImageResult]) -> dict[str, object]:
    annotations = [
        {
            "image_id": image,
            "category_id": 1,
            "bbox": _xywh(box),
            "area": float(np.prod(box[2:] - box[:2])),
            "iscrowd": 0,
        }
        for image, result in enumerate(results)
        for box in result.truth
    ]
    return {
        "images": [{"id": image} for image in range(len(results))],
        "annotations": [annotation | {"id": number + 1} for number, annotation in enumerate(annotations)],
        "categories": [{"id": 1, "name": "opacity"}],
    }


def _detections(results: Sequence[ImageResult]) -> list[dict[str, object]]:
    return [
        {"image_id": image, "category_id": 1, "bbox": _xywh(box), "score": float(score)}
        for image, result in enumerate(results)
        for box, score in zip(result.boxes, result.scores, strict=True)
    ]


def _xywh(box: np.ndarray) -> list[float]:
    return [float(box[0]), float(box[1]), float(box[2] - box[0]), float(box[3] - box[1])]
