"""The export of a trained model to ONNX or to a program of ``torch.export``, with suppression in the graph.

Input ``images``: uint8 ``[1, C, S, S]`` as `preprocess` returns them. Outputs, best first: ``boxes`` float32
``[N, 4]`` xyxy pixels of that image, ``scores`` ``[N]``. Candidates below ``score_thresh`` are among them
if there are fewer than ``detections_per_img`` others: the program that runs the graph drops them.
"""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torchvision.ops import clip_boxes_to_image, nms

from pipeline.data.preprocessing import preprocess
from pipeline.delivery.model_file import CONFIG_FILE, load_model
from pipeline.detection.anchors import decode_boxes
from pipeline.detection.dataset import channels_first
from pipeline.detection.postprocess import NotFiniteError, detect, shrink
from pipeline.detection.retinanet import RetinaNet
from pipeline.errors import UserError
from pipeline.files import directory_atomic, write_json

FORMATS = {"onnx": "model.onnx", "torch": "model.pt2"}
ONNX_OPSET = 18
PIXELS, SCORE = 0.5, 1e-3  # largest differences allowed between an export and the model


Runner = Callable[[npt.NDArray[np.uint8]], tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]]


@dataclass(frozen=True)
class Rules:
    """The settings of the post-processing that is in the graph."""

    image_size: tuple[int, int]
    topk: int
    nms_thresh: float
    count: int
    box_shrink: float


class ExportedDetector(nn.Module):
    """The model with its post-processing as one graph; only its last shape, the box count, depends on the image."""

    def __init__(self, model: RetinaNet, anchors: Sequence[Tensor], settings: Rules) -> None:
        super().__init__()
        self.model, self.settings = model, settings
        self.sizes = [len(level) for level in anchors]
        for number, level in enumerate(anchors):
            self.register_buffer(f"anchors_{number}", level)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """See the module's docstring."""
        rules = self.settings
        outputs = self.model(images)
        logits, deltas = outputs.logits[0, :, 0], outputs.deltas[0]
        boxes, scores = [], []
        for number, (level, offsets) in enumerate(zip(logits.split(self.sizes), deltas.split(self.sizes), strict=True)):
            best, rows = level.topk(min(rules.topk, self.sizes[number]))
            boxes.append(decode_boxes(offsets[rows], getattr(self, f"anchors_{number}")[rows]))
            scores.append(best.sigmoid())
        inside = clip_boxes_to_image(torch.cat(boxes), rules.image_size)
        # A box that was clipped to nothing lies outside the image, and is ranked last.
        ranked = torch.where(((inside[:, 2:] - inside[:, :2]) > 0).all(1), torch.cat(scores), -1.0)
        kept = nms(inside, ranked, rules.nms_thresh)[: rules.count]
        return shrink(inside[kept], rules.box_shrink), ranked[kept]


def export_model(folder: Path, out: Path, kind: str) -> Path:
    """Write the model of ``folder`` as ``onnx`` or ``torch``, with ``model.json`` beside it; return the file.

    The export is run on random images and compared with the model before anything is kept.

    Raises:
        UserError: the post-processing has a step that the graph lacks, the format is unknown, or the two differ.
    """
    if kind not in FORMATS:
        raise UserError(f"--format {kind}: must be one of {', '.join(FORMATS)}")
    model, config = load_model(folder)
    rules = config.postprocessing
    for name, value, allowed in (("suppression", rules.suppression, "nms"), ("flip", rules.flip, False),
                                 ("score_gate", rules.score_gate, False)):  # fmt: skip
        if value != allowed:
            key = f"{folder / CONFIG_FILE}: postprocessing.{name}"
            raise UserError(f"{key} = {value!r}: only {allowed!r} can be exported")
    size = config.preprocessing.image_size
    example = torch.zeros(1, config.architecture.in_channels, size, size, dtype=torch.uint8)
    settings = Rules((size, size), rules.topk_candidates, rules.nms_thresh, rules.detections_per_img, rules.box_shrink)
    detector = ExportedDetector(model, model.anchors_for(example).levels, settings).eval()
    with directory_atomic(out) as target:
        path = target / FORMATS[kind]
        (_write_onnx if kind == "onnx" else _write_program)(detector, example, path)
        shutil.copyfile(folder / CONFIG_FILE, target / CONFIG_FILE)
        rng = np.random.default_rng(0)
        images = [rng.integers(0, 256, (size, size), dtype=np.uint8) for _ in range(2)]
        write_json(target / "check.json", asdict(compare_export(folder, path, images)))
    return out / FORMATS[kind]


def _write_onnx(detector: ExportedDetector, example: Tensor, path: Path) -> None:
    torch.onnx.export(
        detector, (example,), path, input_names=["images"], output_names=["boxes", "scores"],
        opset_version=ONNX_OPSET, dynamo=True, external_data=False, verbose=False,
    )  # fmt: skip


def _write_program(detector: ExportedDetector, example: Tensor, path: Path) -> None:
    with torch.no_grad():
        torch.export.save(torch.export.export(detector, (example,)), path)


@dataclass(frozen=True)
class Agreement:
    """The largest differences between an export and its model over ``images`` images, in pixels and scores."""

    images: int
    boxes: float
    scores: float


def compare_export(folder: Path, exported: Path, images: Sequence[npt.NDArray[np.uint8]]) -> Agreement:
    """Run an export and its model on original images ``[H, W]``, and compare their detections.

    Raises:
        UserError: the export finds another number of boxes, differs by more than half a pixel or .001 in a score,
            or an output is not finite.
    """
    model, config = load_model(folder)
    run = load_export(exported)
    boxes = scores = 0.0
    for number, image in enumerate(images):
        batch = channels_first([preprocess(image, config.preprocessing)])
        try:
            with torch.no_grad():
                (wanted,) = detect(model, torch.from_numpy(batch), config.postprocessing)
        except NotFiniteError as error:
            raise UserError(f"{folder}: {error}, for the generated image {number}") from None
        found_boxes, found_scores = run(batch)
        if not (np.isfinite(found_boxes).all() and np.isfinite(found_scores).all()):
            raise UserError(f"{exported}: its outputs are not finite, for the generated image {number}")
        kept = found_scores > config.postprocessing.score_thresh
        if kept.sum() != len(wanted["scores"]):
            counts = f"{kept.sum()} boxes in image {number}, the model {len(wanted['scores'])}"
            raise UserError(f"{exported}: finds {counts}")
        if kept.any():
            boxes = max(boxes, float(np.abs(found_boxes[kept] - wanted["boxes"].numpy()).max()))
            scores = max(scores, float(np.abs(found_scores[kept] - wanted["scores"].numpy()).max()))
    if boxes > PIXELS or scores > SCORE:
        difference = f"boxes differ by {boxes:.3g} pixels, scores by {scores:.3g}"
        raise UserError(f"{exported}: {difference}; at most {PIXELS} and {SCORE} are allowed")
    return Agreement(len(images), boxes, scores)


def load_export(path: Path) -> Runner:
    """Load an export as a function of an image ``[1, C, S, S]`` that returns boxes and scores."""
    if path.suffix == ".onnx":
        return _onnx_runner(path)
    program = torch.export.load(path).module()

    def run(images: npt.NDArray[np.uint8]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        with torch.no_grad():
            boxes, scores = program(torch.from_numpy(images))
        return boxes.numpy(), scores.numpy()

    return run


def _onnx_runner(path: Path) -> Runner:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def run(images: npt.NDArray[np.uint8]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        boxes, scores = session.run(["boxes", "scores"], {"images": images})
        return np.asarray(boxes, np.float32), np.asarray(scores, np.float32)

    return run
