"""COCO average precision, by faster-coco-eval."""

import contextlib
import io
from collections.abc import Sequence

import numpy as np

from pipeline.evaluation.results import ImageResult

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALL_POINTS = np.linspace(0, 1, 101)
MAX_DETECTIONS = 100


def coco_map(results: Sequence[ImageResult]) -> dict[str, float]:
    """``map`` (IoU .50 to .95), ``map_50`` and ``map_75`` over images; one class.

    0 when there is no detection, NaN when there is no true box.
    """
    if not any(len(result.truth) for result in results):
        return dict.fromkeys(("map", "map_50", "map_75"), float("nan"))
    if not any(len(result.boxes) for result in results):
        return dict.fromkeys(("map", "map_50", "map_75"), 0.0)
    from faster_coco_eval import COCO, COCOeval_faster

    # The library prints its progress.
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        truth = COCO(_truth(results))
        found = truth.loadRes(_detections(results))
        evaluation = COCOeval_faster(truth, found, "bbox", print_function=lambda *_: None)
        evaluation.evaluate()
        evaluation.accumulate()
    precision = evaluation.eval["precision"][:, :, 0, 0, -1]  # (T, R)
    values = np.where(precision > -1, precision, 0).mean(1)
    return {"map": float(values.mean()), "map_50": float(values[0]), "map_75": float(values[5])}


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
