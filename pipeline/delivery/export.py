"""The export of a trained model to ONNX or to a program of ``torch.export``, with suppression in the graph.

Input ``images``: uint8 ``[1, C, S, S]`` as `preprocess` returns them. Outputs, best first: ``boxes`` float32
``[N, 4]`` xyxy pixels of that image, ``scores`` ``[N]``, calibrated; with several classes, also ``labels`` int64
``[N]``, positions in ``classes``. Candidates below ``operating_threshold`` are among them: the program that runs the
graph drops them.

A model of several networks whose outputs are averaged is one graph too. One whose boxes are fused becomes a file for
each network: ``model-0.onnx`` and so on, with NMS at IoU .5. The program that runs them does what `load_export` does:
weighted boxes fusion (Solovyev et al. 2021) at ``ensemble.fusion_thresh``, with the score of a fused box being the mean
over all networks; then suppression, box shrink and calibration, see `ScoreMap`.
"""

import logging
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torchvision.ops import box_iou, clip_boxes_to_image, nms

from pipeline.data.preprocessing import preprocess
from pipeline.delivery.model_file import CONFIG_FILE, ModelConfig, load_model, read_config
from pipeline.detection.anchors import decode_boxes
from pipeline.detection.dataset import channels_first
from pipeline.detection.detect import Detector, NotFiniteError, detect
from pipeline.detection.ensemble import Ensemble, fuse, one_look
from pipeline.detection.postprocess import Detections, shrink
from pipeline.detection.retinanet import RetinaNet
from pipeline.errors import UserError
from pipeline.files import directory_atomic, write_json
from pipeline.metrics.calibration import IDENTITY, ScoreMap, calibrated
from pipeline.metrics.results import image_result

FORMATS = {"onnx": "model.onnx", "torch": "model.pt2"}
ONNX_OPSET = 18
_EPS = 1e-7  # scores of 0 and 1 have no finite logit
PIXELS, SCORE = 0.5, 1e-3  # largest differences allowed between an export and the model


class Exported(NamedTuple):
    """Outputs of an export: ``boxes`` ``[N, 4]`` xyxy, ``scores`` ``[N]``, ``labels`` ``[N]``."""

    boxes: npt.NDArray[np.float32]
    scores: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]


Runner = Callable[[npt.NDArray[np.uint8]], Exported]


@dataclass(frozen=True)
class Rules:
    """The settings of the post-processing that is in the graph."""

    image_size: tuple[int, int]
    topk: int
    suppression: str
    nms_thresh: float
    soft_nms_sigma: float
    count: int
    box_shrink: float
    score_maps: tuple[ScoreMap, ...]


class ExportedDetector(nn.Module):
    """The model with its post-processing as one graph; only its last shape, the box count, depends on the image."""

    def __init__(self, model: Detector, anchors: Sequence[Tensor], settings: Rules) -> None:
        super().__init__()
        self.model, self.settings = model, settings
        self.sizes = [len(level) for level in anchors]
        for number, level in enumerate(anchors):
            self.register_buffer(f"anchors_{number}", level)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """See the module's docstring."""
        rules = self.settings
        classes = len(rules.score_maps)
        outputs = self.model(images)
        logits, deltas = outputs.logits[0].flatten(), outputs.deltas[0]
        boxes, scores, labels = [], [], []
        sizes = [size * classes for size in self.sizes]
        for number, (level, offsets) in enumerate(zip(logits.split(sizes), deltas.split(self.sizes), strict=True)):
            best, flat = level.topk(min(rules.topk, sizes[number]))
            rows = flat // classes
            boxes.append(decode_boxes(offsets[rows], getattr(self, f"anchors_{number}")[rows]))
            scores.append(best.sigmoid())
            labels.append(flat % classes)
        kinds = torch.cat(labels)
        inside = clip_boxes_to_image(torch.cat(boxes), rules.image_size)
        # A box that was clipped to nothing lies outside the image, and is ranked last.
        ranked = torch.where(((inside[:, 2:] - inside[:, :2]) > 0).all(1), torch.cat(scores), -1.0)
        # Boxes of different classes are moved apart, so that they do not overlap.
        apart = inside + kinds[:, None] * (2.0 * max(rules.image_size)) if classes > 1 else inside
        if rules.suppression == "soft_nms":
            kept, left = _soft_nms(apart, ranked, rules.soft_nms_sigma, min(rules.count, len(ranked)))
        else:
            kept = nms(apart, ranked, rules.nms_thresh)[: rules.count]
            left = ranked[kept]
        found = shrink(inside[kept], rules.box_shrink)
        if classes == 1:
            return found, _mapped(left, rules.score_maps[0])
        each = torch.stack([_mapped(left, score_map) for score_map in rules.score_maps], 1)  # (N, K)
        mapped, order = each.gather(1, kinds[kept][:, None])[:, 0].sort(descending=True)
        return found[order], mapped, kinds[kept][order]


def _soft_nms(boxes: Tensor, scores: Tensor, sigma: float, count: int) -> tuple[Tensor, Tensor]:
    """Return the rows and scores of `pipeline.detection.suppression.soft_nms`, in steps that a graph can hold.

    A graph has no loop that ends early: once all candidates are taken, the rest of the ``count`` rows have
    negative scores.
    """
    rows = torch.arange(len(scores))
    picked, final = [], []
    for _ in range(count):
        best = scores.argmax()
        picked.append(best)
        final.append(scores[best])
        overlap = box_iou(boxes[best][None], boxes)[0]
        # A box without area overlaps nothing, and 0 / 0 must not become its score.
        decayed = scores * torch.exp(-overlap.nan_to_num(0.0).square() / sigma)
        scores = torch.where(rows == best, -1.0, decayed)
    return torch.stack(picked), torch.stack(final)


def _mapped(scores: Tensor, score_map: ScoreMap) -> Tensor:
    """Apply the map to scores ``[N]``; those of boxes that are none, which are negative, become -1."""
    inside = scores.clamp(_EPS, 1 - _EPS)
    mapped = (score_map.slope * inside.logit() + score_map.intercept).sigmoid()
    return torch.where(scores < 0, -1.0, mapped)


def export_model(folder: Path, out: Path, kind: str) -> Path:
    """Write the model of ``folder`` as ``onnx`` or ``torch``, with ``model.json`` beside it.

    Return the file, or the folder of the files of a model of several networks. The export is run on random images and
    compared with the model before anything is kept.

    Raises:
        UserError: the post-processing has a step that the graph lacks, the format is unknown, or the two differ.
    """
    if kind not in FORMATS:
        raise UserError(f"--format {kind}: must be one of {', '.join(FORMATS)}")
    model, config = load_model(folder)
    rules = config.postprocessing
    for name, value, allowed in (
        ("suppression", rules.suppression, ("nms", "soft_nms")),
        ("flip", rules.flip, (False,)),
        ("score_gate", rules.score_gate, (False,)),
    ):
        if value not in allowed:
            key = f"{folder / CONFIG_FILE}: postprocessing.{name}"
            raise UserError(f"{key} = {value!r}: only {' or '.join(map(str, allowed))} can be exported")
    size = config.preprocessing.image_size
    example = torch.zeros(1, config.architecture.in_channels, size, size, dtype=torch.uint8)
    fused = _boxes_are_fused(config)
    networks: Sequence[Detector] = [model]
    if fused and isinstance(model, Ensemble):
        networks = [member for member in model.members if isinstance(member, RetinaNet)]
    file = Path(FORMATS[kind])
    with directory_atomic(out) as target, _quiet_exporters():
        for number, network in enumerate(networks):
            detector = ExportedDetector(network, network.anchors_for(example).levels, _rules(config)).eval()
            name = f"{file.stem}-{number}{file.suffix}" if fused else file.name
            (_write_onnx if kind == "onnx" else _write_program)(detector, example, target / name)
        shutil.copyfile(folder / CONFIG_FILE, target / CONFIG_FILE)
        rng = np.random.default_rng(0)
        images = [rng.integers(0, 256, (size, size), dtype=np.uint8) for _ in range(2)]
        exported = target if fused else target / file
        write_json(target / "check.json", asdict(compare_export(folder, exported, images)))
    return out if fused else out / file


@contextmanager
def _quiet_exporters() -> Iterator[None]:
    """Silence the exporters: they log hundreds of lines about how they simplify a graph."""
    loggers = [logging.getLogger(name) for name in ("onnxscript", "onnx_ir", "torch._export", "torch.onnx")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _boxes_are_fused(config: ModelConfig) -> bool:
    return config.ensemble is not None and config.ensemble.fusion_thresh is not None


def _rules(config: ModelConfig) -> Rules:
    """Return the post-processing of each graph; the fusion of boxes, and what follows it, is not in the graphs."""
    size, fused = config.preprocessing.image_size, _boxes_are_fused(config)
    rules = one_look(config.postprocessing) if fused else config.postprocessing
    maps = (None,) * len(config.classes) if fused else config.calibrations
    return Rules(
        image_size=(size, size),
        topk=rules.topk_candidates,
        suppression=rules.suppression,
        nms_thresh=rules.nms_thresh,
        soft_nms_sigma=rules.soft_nms_sigma,
        count=rules.detections_per_img,
        box_shrink=rules.box_shrink,
        score_maps=tuple(IDENTITY if one is None else one.box for one in maps),
    )


def _write_onnx(detector: ExportedDetector, example: Tensor, path: Path) -> None:
    names = ["boxes", "scores", "labels"][: 2 if len(detector.settings.score_maps) == 1 else 3]
    torch.onnx.export(
        detector, (example,), path, input_names=["images"], output_names=names,
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
    least = np.array(config.postprocessing.score_thresh)
    fused = _boxes_are_fused(config)
    limits = np.array([0.0 if fused else float(one(least)) for one in _rules(config).score_maps])
    boxes = scores = 0.0
    for number, image in enumerate(images):
        batch = channels_first([preprocess(image, config.preprocessing)])
        try:
            with torch.no_grad():
                (wanted,) = detect(model, torch.from_numpy(batch), config.postprocessing)
        except NotFiniteError as error:
            raise UserError(f"{folder}: {error}, for the generated image {number}") from None
        found = run(batch)
        if not (np.isfinite(found.boxes).all() and np.isfinite(found.scores).all()):
            raise UserError(f"{exported}: its outputs are not finite, for the generated image {number}")
        own = image_result(wanted["boxes"].numpy(), wanted["scores"].numpy(), [], wanted["labels"].numpy())
        own = calibrated(own, config.calibrations)
        kept = found.scores > limits[found.labels]
        if kept.sum() != len(own.scores) or (found.labels[kept] != own.labels).any():
            counts = f"{kept.sum()} boxes in image {number}, the model {len(own.scores)}"
            raise UserError(f"{exported}: finds {counts}, or others")
        if kept.any():
            boxes = max(boxes, float(np.abs(found.boxes[kept] - own.boxes).max()))
            scores = max(scores, float(np.abs(found.scores[kept] - own.scores).max()))
    if boxes > PIXELS or scores > SCORE:
        difference = f"boxes differ by {boxes:.3g} pixels, scores by {scores:.3g}"
        raise UserError(f"{exported}: {difference}; at most {PIXELS} and {SCORE} are allowed")
    return Agreement(len(images), boxes, scores)


def load_export(path: Path) -> Runner:
    """Load an export as a function of an image ``[1, C, S, S]`` that returns boxes, calibrated scores and labels.

    ``path`` is the file, or the folder of the files of a model of several networks.
    """
    if path.is_dir():
        return _fused_runner(path)
    if path.suffix == ".onnx":
        return _onnx_runner(path)
    program = torch.export.load(path).module()

    def run(images: npt.NDArray[np.uint8]) -> Exported:
        with torch.no_grad():
            return _exported([value.numpy() for value in program(torch.from_numpy(images))])

    return run


def _exported(outputs: Sequence[npt.NDArray[Any]]) -> Exported:
    """Return the outputs of a graph, which has no labels if there is one class."""
    boxes, scores, *labels = outputs
    of_one = np.zeros(len(scores), np.int64)
    return Exported(np.asarray(boxes, np.float32), np.asarray(scores, np.float32), labels[0] if labels else of_one)


def _fused_runner(folder: Path) -> Runner:
    config = read_config(folder / CONFIG_FILE)
    assert config.ensemble is not None
    assert config.ensemble.fusion_thresh is not None
    fusion_thresh, rules = config.ensemble.fusion_thresh, config.postprocessing
    runners = [load_export(path) for path in sorted(folder.glob("model-*"))]

    def look(run: Runner, images: npt.NDArray[np.uint8]) -> list[Detections]:
        found = run(images)
        kept = found.scores > rules.score_thresh
        return [{name: torch.from_numpy(value[kept]) for name, value in found._asdict().items()}]

    def run_all(images: npt.NDArray[np.uint8]) -> Exported:
        (found,) = fuse([look(run, images) for run in runners], fusion_thresh, rules)
        own = image_result(found["boxes"].numpy(), found["scores"].numpy(), [], found["labels"].numpy())
        own = calibrated(own, config.calibrations)
        return Exported(own.boxes.astype(np.float32), own.scores.astype(np.float32), own.labels)

    return run_all


def _onnx_runner(path: Path) -> Runner:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def run(images: npt.NDArray[np.uint8]) -> Exported:
        return _exported([np.asarray(value) for value in session.run(None, {"images": images})])

    return run
