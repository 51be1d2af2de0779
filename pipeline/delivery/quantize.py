"""ONNX graphs whose convolutions compute with 8-bit integers, which CPUs with VNNI instructions do faster."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

Images = npt.NDArray[np.uint8]
# The operations between convolutions too: otherwise features would become floats and integers again after each one.
_OPERATORS = ("Conv", "Add", "Clip", "Relu", "MaxPool", "Resize")


def quantize(path: Path, batches: Iterator[Images]) -> None:
    """Replace an ONNX graph of ours by one with 8-bit convolutions; the post-processing stays as it is.

    Weights become int8 with a scale for each output channel, features uint8. The ranges of the features are those of
    ``batches``, images ``[B, C, S, S]`` (ONNX Runtime's static quantization in the form QDQ).
    """
    with tempfile.TemporaryDirectory() as folder:
        folded = Path(folder) / "folded.onnx"  # each kernel is one constant
        quant_pre_process(path, folded, skip_symbolic_shape=True)
        quantize_static(
            folded, path, _Batches(batches), per_channel=True, activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8, nodes_to_quantize=_nodes_of_the_network(onnx.load(folded).graph),
            op_types_to_quantize=list(_OPERATORS),
        )  # fmt: skip


class _Batches(CalibrationDataReader):
    def __init__(self, batches: Iterator[Images]) -> None:
        self._batches = batches

    def get_next(self) -> dict[str, Images]:
        """Return the next inputs of the graph; no inputs after the last."""
        batch = next(self._batches, None)
        return {} if batch is None else {"images": batch}


def _nodes_of_the_network(graph: onnx.GraphProto) -> list[str]:
    """Return the names of the nodes to quantize: convolutions, and what their inputs are computed from."""
    makers = {output: node for node in graph.node for output in node.output}
    found: dict[str, str] = {}
    waiting = [node for node in graph.node if node.op_type == "Conv"]
    while waiting:
        node = waiting.pop()
        if node.name not in found:
            found[node.name] = node.op_type
            waiting += [makers[name] for name in node.input if name in makers]
    return [name for name, operator in found.items() if operator in _OPERATORS]
