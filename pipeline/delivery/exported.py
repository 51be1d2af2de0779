"""Running an exported model; see `pipeline.delivery.export` for its inputs and outputs."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from pipeline.delivery.model_config import CONFIG_FILE, read_config
from pipeline.detection.ensemble import fuse_detections
from pipeline.detection.postprocess import Detections
from pipeline.detection.suppression import ABSENT
from pipeline.metrics.calibration import calibrated
from pipeline.metrics.results import image_result


class Exported(NamedTuple):
    """Detections in an image: ``boxes`` ``[N, 4]`` xyxy pixels, calibrated ``scores`` ``[N]``, ``labels`` ``[N]``."""

    boxes: npt.NDArray[np.float32]
    scores: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]


# Takes images uint8 ``[B, C, S, S]``; returns the detections in each.
Runner = Callable[[npt.NDArray[np.uint8]], list[Exported]]


def load_export(path: Path) -> Runner:
    """Load an exported model from its file; one of several networks, whose boxes are fused, from its folder."""
    if path.is_dir():
        return _fused_runner(path)
    if path.suffix == ".onnx":
        return _onnx_runner(path)
    program = torch.export.load(path).module()

    def run(images: npt.NDArray[np.uint8]) -> list[Exported]:
        with torch.no_grad():
            return image_by_image([value.numpy() for value in program(torch.from_numpy(images))])

    return run


def _onnx_runner(path: Path) -> Runner:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def run(images: npt.NDArray[np.uint8]) -> list[Exported]:
        return image_by_image([np.asarray(value) for value in session.run(None, {"images": images})])

    return run


def image_by_image(outputs: Sequence[npt.NDArray[Any]]) -> list[Exported]:
    """Return the outputs of a graph without absent rows; a graph has no labels if there is one class."""
    boxes, scores, *labels = outputs
    each = labels[0] if labels else np.zeros(scores.shape, np.int64)
    rows = zip(boxes, scores, each, strict=True)
    return [Exported(*(part[own[1] != ABSENT] for part in own)) for own in rows]


def _fused_runner(folder: Path) -> Runner:
    config = read_config(folder / CONFIG_FILE)
    assert config.ensemble is not None
    assert config.ensemble.fusion_thresh is not None
    fusion_thresh, rules = config.ensemble.fusion_thresh, config.postprocessing
    runners = [load_export(path) for path in sorted(folder.glob("model-*"))]

    def look(run: Runner, images: npt.NDArray[np.uint8]) -> list[Detections]:
        return [{name: torch.from_numpy(value) for name, value in one._asdict().items()} for one in run(images)]

    def finished(found: Detections) -> Exported:
        own = image_result(found["boxes"].numpy(), found["scores"].numpy(), [], found["labels"].numpy())
        own = calibrated(own, config.calibrations)
        return Exported(own.boxes.astype(np.float32), own.scores.astype(np.float32), own.labels)

    def run_all(images: npt.NDArray[np.uint8]) -> list[Exported]:
        fused = fuse_detections([look(run, images) for run in runners], fusion_thresh, rules)
        return [finished(one) for one in fused]

    return run_all
