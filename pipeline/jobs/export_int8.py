"""Export with 8-bit convolutions, calibrated and judged on the project's val split."""

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from pipeline.assembly.inputs import SplitData, read_inputs
from pipeline.assembly.preprocessing import preprocessing_of
from pipeline.assembly.validation import epoch_score, val_metrics
from pipeline.delivery.export import export_model
from pipeline.delivery.exported import load_export
from pipeline.delivery.model_config import CONFIG_FILE, read_config
from pipeline.delivery.quantize import quantize
from pipeline.detection.dataset import channels_first
from pipeline.errors import UserError
from pipeline.params import Params
from pipeline.paths import PREPARED

MAX_LOSS = 0.005  # of mAP on val
_BATCH_SIZE, _CALIBRATION_BATCHES = 4, 25


def export_int8(params: Params, folder: Path, out: Path, kind: str) -> Path:
    """Write the model as `export_model` does, ``kind`` being ``onnx`` or ``triton``, with 8-bit convolutions.

    ``check.json`` also has the mAP on val of the graph before and after.

    Raises:
        UserError: the prepared data are not of the model's size and kind, mAP falls by more than `MAX_LOSS`, or the
            export itself is refused.
    """
    if kind == "torch":
        raise UserError("--int8: must go with --format onnx or triton")
    val = read_inputs(params)["val"]
    if read_config(folder / CONFIG_FILE).preprocessing != preprocessing_of(params):
        raise UserError(f"{PREPARED}: made with other preprocess params than {folder}; --int8 needs the model's own")

    def to_int8(files: Sequence[Path], exported: Path) -> dict[str, float]:
        before = _map_on(exported, val)
        for file in files:
            quantize(file, islice(_batches(val), _CALIBRATION_BATCHES))
        after = _map_on(exported, val)
        if before - after > MAX_LOSS:
            rule = f"at most {MAX_LOSS} less is allowed; export without --int8"
            raise UserError(f"--int8: mAP on val is {after:.3f} instead of {before:.3f}; {rule}")
        return {"val_map": before, "val_map_int8": after}

    return export_model(folder, out, kind, to_int8)


def _batches(data: SplitData) -> Iterator[npt.NDArray[np.uint8]]:
    for start in range(0, len(data.index), _BATCH_SIZE):
        stop = min(start + _BATCH_SIZE, len(data.index))
        yield channels_first([data.images[number] for number in range(start, stop)])


def _map_on(exported: Path, data: SplitData) -> float:
    run = load_export(exported)
    found = [one._asdict() for batch in _batches(data) for one in run(batch)]
    detections = [{name: torch.from_numpy(value) for name, value in one.items()} for one in found]
    return epoch_score(val_metrics(detections, data))
