"""The export of a trained model to ONNX or to a program of ``torch.export``, with suppression in the graph.

Input ``images``: uint8 ``[B, C, S, S]`` as `preprocess` returns them, for any B. Outputs of each image, best first and
at most ``detections_per_img``: ``boxes`` float32 ``[B, N, 4]`` xyxy pixels of that image, ``scores`` ``[B, N]``,
calibrated; with several classes, also ``labels`` int64 ``[B, N]``, positions in ``classes``. Rows that are no detection
have the score -1, and an image for which the network's outputs are not finite has the score NaN. Detections below
``operating_threshold`` are among them: the program that runs the graph drops them.

A model of several networks whose outputs are averaged is one graph too. One whose boxes are fused becomes a file for
each network: ``model-0.onnx`` and so on, with NMS at IoU .5. The program that runs them does what
`pipeline.delivery.exported.load_export` does: weighted boxes fusion (Solovyev et al. 2021) at
``ensemble.fusion_thresh``, with the score of a fused box being the mean over all networks; then suppression, box shrink
and calibration, see `ScoreMap`.
"""

import logging
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import chain, repeat
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from pipeline.data.preprocessing import preprocess
from pipeline.delivery.exported import Exported, load_export
from pipeline.delivery.model_config import CONFIG_FILE, ModelConfig
from pipeline.delivery.model_file import load_model
from pipeline.delivery.triton import make_repository
from pipeline.detection.dataset import channels_first
from pipeline.detection.detect import Detector, NotFiniteError, detect, find
from pipeline.detection.ensemble import Ensemble, one_look
from pipeline.detection.retinanet import RetinaNet
from pipeline.detection.settings import MOST_DETECTIONS, PostProcessing
from pipeline.detection.suppression import ABSENT
from pipeline.errors import UserError
from pipeline.files import directory_atomic, write_json
from pipeline.metrics.calibration import IDENTITY, Calibrations, ScoreMap, calibrated_scores
from pipeline.metrics.results import Floats, ImageResult, image_result

FORMATS = {"onnx": "model.onnx", "torch": "model.pt2", "triton": "model.onnx"}
ONNX_OPSET = 18
_ANY_BATCH = ({0: torch.export.Dim("batch")},)
_EPS = 1e-7  # scores of 0 and 1 have no finite logit
PIXELS, SCORE = 0.5, 1e-3  # largest differences allowed between an export and the model
# Share of the boxes that may differ by more: of two overlapping boxes with equal scores either may suppress the other.
_TIED = 0.01


class ExportedDetector(nn.Module):
    """The model with its post-processing and calibration as one graph; only the number of images may vary."""

    def __init__(self, model: Detector, post_processing: PostProcessing, score_maps: Sequence[ScoreMap]) -> None:
        super().__init__()
        self.model, self.post_processing, self.score_maps = model, post_processing, score_maps

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """See the module's docstring."""
        found = find(self.model, images, self.post_processing)
        if len(self.score_maps) == 1:
            return found.boxes, _mapped(found.scores, self.score_maps[0])
        each = torch.stack([_mapped(found.scores, score_map) for score_map in self.score_maps], 2)  # (B, N, K)
        mapped = each.gather(2, found.labels[..., None])[..., 0]
        # The maps of different classes may swap two detections.
        return tuple(found._replace(scores=mapped).best_first())


def _mapped(scores: Tensor, score_map: ScoreMap) -> Tensor:
    inside = scores.clamp(_EPS, 1 - _EPS)
    mapped = (score_map.slope * inside.logit() + score_map.intercept).sigmoid()
    return torch.where(scores == ABSENT, ABSENT, mapped)


# Changes the files of an export; the second argument is what `load_export` takes. Returns values for check.json.
Change = Callable[[Sequence[Path], Path], Mapping[str, float]]


def export_model(folder: Path, out: Path, kind: str, change: Change | None = None) -> Path:
    """Write the model of ``folder`` to ``out``, with ``model.json``; ``kind`` is ``onnx``, ``torch`` or ``triton``.

    Return the file; or the folder, if the model is several networks whose boxes are fused. The export is run on
    random images, in batches of different sizes, and compared with the model before anything is kept. Then ``change``
    is called, if there is one.

    Raises:
        UserError: the post-processing has a step that the graph lacks, the format is unknown, or the two differ.
    """
    if kind not in FORMATS:
        raise UserError(f"--format {kind}: must be one of {', '.join(FORMATS)}")
    model, config = load_model(folder)
    rules, score_maps = _in_the_graph(config)
    if rules.suppression == "weighted_fusion":
        key = f"{folder / CONFIG_FILE}: postprocessing.suppression"
        raise UserError(f"{key} = {rules.suppression!r}: only nms or soft_nms can be exported")
    if kind == "triton" and config.boxes_are_fused:
        raise UserError(
            f"{folder}: boxes of several networks are fused, and Triton cannot do that; --format onnx writes each"
        )
    size = config.preprocessing.image_size
    example = torch.zeros(2, config.architecture.in_channels, size, size, dtype=torch.uint8)
    networks: list[Detector] = [model]
    if config.boxes_are_fused and isinstance(model, Ensemble):
        networks = [cast(RetinaNet, member) for member in model.members]
    file = Path(FORMATS[kind])
    files = []
    with directory_atomic(out) as target, _quiet_exporters():
        for number, network in enumerate(networks):
            network.anchors_for(example)  # kept by the network, so that the graph has them as constants
            detector = ExportedDetector(network, rules, score_maps).eval()
            name = f"{file.stem}-{number}{file.suffix}" if config.boxes_are_fused else file.name
            files.append(target / name)
            (_write_program if kind == "torch" else _write_onnx)(detector, example, files[-1])
        shutil.copyfile(folder / CONFIG_FILE, target / CONFIG_FILE)
        rng = np.random.default_rng(0)
        images = [rng.integers(0, 256, (size, size), dtype=np.uint8) for _ in range(4)]
        exported = target if config.boxes_are_fused else target / file
        checked = asdict(compare_export(folder, exported, images))
        if change:
            checked |= change(files, exported)
        write_json(target / "check.json", checked)
        if kind == "triton":
            file = make_repository(target).relative_to(target)
    return out if config.boxes_are_fused else out / file


@contextmanager
def _quiet_exporters() -> Iterator[None]:
    """Silence the exporters: they log hundreds of lines about how they simplify a graph."""
    # The quantizer of ONNX Runtime uses the root logger.
    loggers = [logging.getLogger(name) for name in ("", "onnxscript", "onnx_ir", "torch._export", "torch.onnx")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _in_the_graph(config: ModelConfig) -> tuple[PostProcessing, tuple[ScoreMap, ...]]:
    """Return the rules of each graph; the fusion of boxes, and what follows it, is not in the graphs."""
    if config.boxes_are_fused:
        return one_look(config.postprocessing), (IDENTITY,) * len(config.classes)
    return config.postprocessing, tuple(IDENTITY if one is None else one.box for one in config.calibrations)


def _write_onnx(detector: ExportedDetector, example: Tensor, path: Path) -> None:
    names = ["boxes", "scores", "labels"][: 2 if len(detector.score_maps) == 1 else 3]
    torch.onnx.export(
        detector, (example,), path, input_names=["images"], output_names=names, dynamic_shapes=_ANY_BATCH,
        opset_version=ONNX_OPSET, dynamo=True, external_data=False, verbose=False,
    )  # fmt: skip


def _write_program(detector: ExportedDetector, example: Tensor, path: Path) -> None:
    with torch.no_grad():
        torch.export.save(torch.export.export(detector, (example,), dynamic_shapes=_ANY_BATCH), path)


@dataclass(frozen=True)
class Agreement:
    """The largest differences between an export and its model over ``images`` images: in a score, and in pixels.

    The latter are of all boxes but one in a hundred.
    """

    images: int
    boxes: float
    scores: float


def compare_export(folder: Path, exported: Path, images: Sequence[npt.NDArray[np.uint8]]) -> Agreement:
    """Run an export and its model on original images ``[H, W]``, in batches of 1, 3 and 8, and compare the detections.

    The last digits of two nearly equal scores may order them either way, also where the number of detections ends.
    Therefore each detection of the export is compared with the nearest one of the model that has about the same score,
    and the model gives more of them. The partners must be the model's best ones by the network's score, which decides
    what is a detection: the calibrations of two classes may order them otherwise.

    Raises:
        UserError: the export finds another number of boxes, differs by more than half a pixel in more than one box of a
            hundred or by .001 in a score, or an output is not finite.
    """
    model, config = load_model(folder)
    run = load_export(exported)
    rules = config.postprocessing
    limit = rules.detections_per_img
    if not config.boxes_are_fused:  # more of them would be fused into other ones
        rules = replace(rules, detections_per_img=min(2 * limit, MOST_DETECTIONS))
    distances: list[float] = []
    scores = 0.0
    start = 0
    for size in _sizes(len(images)):
        batch = channels_first([preprocess(image, config.preprocessing) for image in images[start : start + size]])
        try:
            with torch.no_grad():
                wanted = detect(model, torch.from_numpy(batch), rules)
        except NotFiniteError as error:
            numbers = ", ".join(str(start + index) for index in error.indices)
            raise UserError(f"{folder}: {error}, for the generated image {numbers}") from None
        for number, (one, found) in enumerate(zip(wanted, run(batch), strict=True), start):
            if not (np.isfinite(found.boxes).all() and np.isfinite(found.scores).all()):
                raise UserError(f"{exported}: its outputs are not finite, for the generated image {number}")
            own = image_result(one["boxes"].numpy(), one["scores"].numpy(), [], one["labels"].numpy())
            count = min(limit, len(own.scores))
            if len(found.scores) != count:
                counts = f"{len(found.scores)} boxes in image {number}, the model {count}"
                raise UserError(f"{exported}: finds {counts}")
            if count:
                apart, difference = _differences(found, own, config.calibrations)
                distances += apart.tolist()
                scores = max(scores, difference)
        start += size
    boxes = float(np.quantile(distances, 1 - _TIED, method="higher")) if distances else 0.0
    if boxes > PIXELS or scores > SCORE:
        differences = f"boxes differ by {boxes:.3g} pixels, scores by {scores:.3g}"
        raise UserError(f"{exported}: {differences}; at most {PIXELS} and {SCORE} are allowed")
    return Agreement(len(images), boxes, scores)


def _differences(found: Exported, own: ImageResult, calibrations: Calibrations) -> tuple[Floats, float]:
    """Compare an image's detections ``[N]`` with the model's ``[M]``, M >= N > 0, whose scores are the network's.

    Return the distances of the boxes ``[N]`` in pixels, infinite for another class, and the largest difference of the
    scores.
    """
    scores = calibrated_scores(own, calibrations)
    pairs = _pairs(found, own, scores)
    apart = np.abs(found.boxes - own.boxes[pairs]).max(axis=1)
    missed = own.scores[: len(pairs)] - own.scores[np.sort(pairs)]
    difference = max(np.abs(found.scores - scores[pairs]).max(), missed.max())
    return np.where(found.labels == own.labels[pairs], apart, np.inf), float(difference)


def _pairs(found: Exported, own: ImageResult, scores: Floats) -> npt.NDArray[np.intp]:
    """Return for each detection of the export the number of the model's: the nearest box of about the same score.

    ``scores`` are the model's, calibrated.
    """
    distances = np.abs(found.boxes[:, None] - own.boxes).max(axis=2, initial=0)
    close = np.abs(found.scores[:, None] - scores) <= SCORE
    alike = close & (found.labels[:, None] == own.labels)
    far = 1 + distances.sum()  # more than all pairs that are alike can differ by together
    pairs: npt.NDArray[np.intp] = linear_sum_assignment(np.where(alike, distances, far + distances))[1]
    return pairs


def _sizes(count: int) -> Iterator[int]:
    """Yield sizes of batches that make up ``count`` images: 1, 3, and then 8."""
    for size in chain((1, 3), repeat(8)):
        if count <= 0:
            return
        yield min(size, count)
        count -= size
