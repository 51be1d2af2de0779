"""An image from pixels to boxes in other runtimes, against torchvision's eager RetinaNet with the same backbone."""

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from benchmarks.detectors import ARCHITECTURE, POST_PROCESSING, make_batch, our_detector, torchvision_detector
from benchmarks.pairs import compare
from pipeline.data.settings import Preprocessing
from pipeline.delivery.export import export_model
from pipeline.delivery.exported import load_export
from pipeline.delivery.model_config import ModelConfig
from pipeline.delivery.model_file import save_model
from pipeline.delivery.quantize import quantize
from pipeline.detection.detect import detect

SIZE, PAIRS = 1024, 7


def main() -> None:
    torch.manual_seed(0)
    batch = make_batch(SIZE, (1,))
    theirs = torchvision_detector(SIZE).eval()

    @torch.inference_mode()
    def peer() -> None:
        theirs(batch.torchvision_images)

    with tempfile.TemporaryDirectory() as folder:
        for name, ours in _runtimes(Path(folder), batch.images).items():
            compare(f"inference, ResNet-50, {SIZE} px, batch 1: {name}", ours, peer, PAIRS)


def _runtimes(folder: Path, images: torch.Tensor) -> dict[str, Callable[[], object]]:
    model = our_detector().eval()
    config = ModelConfig(
        format_version=1, classes=("lung opacity",), architecture=ARCHITECTURE,
        preprocessing=Preprocessing(SIZE, 2.0, (8, 8), ("clahe",)), postprocessing=POST_PROCESSING,
        operating_threshold=0.3, best_epoch=0, val_map=0.0,
    )  # fmt: skip
    save_model(folder / "model", model, config)
    path = export_model(folder / "model", folder / "onnx", "onnx")
    pixels = images.numpy()
    path_8_bits = folder / "8-bits.onnx"
    shutil.copyfile(path, path_8_bits)
    quantize(path_8_bits, iter([pixels]))
    onnx, onnx_8_bits = load_export(path), load_export(path_8_bits)
    compiled = our_detector().eval()
    compiled.load_state_dict(model.state_dict())
    compiled.compile()
    return {
        "eager, float32": lambda: _torch(model, images, torch.float32),
        "eager, bf16": lambda: _torch(model, images, torch.bfloat16),
        "compiled, float32": lambda: _torch(compiled, images, torch.float32),
        "compiled, bf16": lambda: _torch(compiled, images, torch.bfloat16),
        "ONNX Runtime": lambda: onnx(pixels),
        "OpenVINO": _openvino(path, pixels, "f32"),
        "OpenVINO, bf16": _openvino(path, pixels, "bf16"),
        "ONNX Runtime, 8-bit convolutions": lambda: onnx_8_bits(pixels),
        "OpenVINO, 8-bit convolutions": _openvino(path_8_bits, pixels, "f32"),
    }


@torch.inference_mode()
def _torch(model: torch.nn.Module, images: torch.Tensor, precision: torch.dtype) -> None:
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
        detect(model, images, POST_PROCESSING)  # type: ignore[arg-type]


def _openvino(path: Path, pixels: np.ndarray, precision: str) -> Callable[[], object]:
    import openvino

    core = openvino.Core()  # type: ignore[attr-defined]
    compiled = core.compile_model(core.read_model(path), "CPU", {"INFERENCE_PRECISION_HINT": precision})
    return lambda: compiled([pixels])


if __name__ == "__main__":
    main()
