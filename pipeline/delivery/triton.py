"""An ONNX export as a model repository of NVIDIA's Triton Inference Server."""

from pathlib import Path
from typing import Any

from pipeline.delivery.model_config import CONFIG_FILE

NAME, VERSION = "pneumoflow", "1"
MAX_BATCH = 8
_TYPES = {"uint8": "TYPE_UINT8", "float": "TYPE_FP32", "int64": "TYPE_INT64"}


def make_repository(exported: Path) -> Path:
    """Arrange an export, ``model.onnx`` and ``model.json``, as the server's model ``pneumoflow``; return the ONNX file.

    The layout is that of Triton's documents ("Model Repository", "Model Configuration"): ``pneumoflow/1/model.onnx``
    beside ``pneumoflow/config.pbtxt``. The server collects requests that come at the same time into one batch.
    """
    import onnxruntime

    folder = exported / NAME
    model = folder / VERSION / "model.onnx"
    model.parent.mkdir(parents=True)
    (exported / "model.onnx").rename(model)
    (exported / CONFIG_FILE).rename(folder / CONFIG_FILE)
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    tensors = [_tensor("input", one) for one in session.get_inputs()]
    tensors += [_tensor("output", one) for one in session.get_outputs()]
    head = f'name: "{NAME}"\nplatform: "onnxruntime_onnx"\nmax_batch_size: {MAX_BATCH}\n'
    (folder / "config.pbtxt").write_text(head + "".join(tensors) + "dynamic_batching { }\n")
    return model


def _tensor(kind: str, described: Any) -> str:
    """Return the entry of an input or output; the server adds the first dimension, that of the batch."""
    of_type = _TYPES[described.type.removeprefix("tensor(").removesuffix(")")]
    dims = ", ".join(str(number) for number in described.shape[1:])
    return f'{kind} [ {{ name: "{described.name}" data_type: {of_type} dims: [ {dims} ] }} ]\n'
