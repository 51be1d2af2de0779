"""A model on disk: ``model.safetensors`` and ``model.json``, which are all that is needed to rebuild it."""

import hashlib
import re
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Self, TypeVar

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from safetensors.torch import save_file

from pipeline.bounds import CHECKED, Fraction
from pipeline.class_names import ClassName
from pipeline.data.settings import Preprocessing
from pipeline.delivery.signature import require_signature, signed
from pipeline.detection.detect import Detector
from pipeline.detection.ensemble import Ensemble
from pipeline.detection.retinanet import RetinaNet
from pipeline.detection.settings import Architecture, EnsembleSettings, PostProcessing
from pipeline.detection.weight_file import read_layouts, read_weights, require_finite, require_layouts
from pipeline.documents import first_problem, read_json, read_json_object
from pipeline.errors import UserError
from pipeline.escaping import one_line
from pipeline.files import write_atomic, write_json
from pipeline.metrics.calibration import Calibration

WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "model.json"
SEEN_FILE = "seen.json"
FORMAT_VERSION = 1
# The rest of a sentence that begins with the name of the starting weights.
LEAK = "was trained on NIH ChestX-ray14, of which RSNA's images are a part: scores on test are too good"
_HASH = re.compile(r"[0-9a-f]{16}")
_MAX_CONFIG_BYTES = 2**18
_NO_FILE = "no such file; run `dvc repro train`, or give the folder of a trained model"


T = TypeVar("T")


def one_or_each(values: tuple[T, ...]) -> T | tuple[T, ...]:
    """Return the values of all classes as ``model.json`` has them: of one class, the value itself."""
    return values[0] if len(values) == 1 else values


class ModelConfig(BaseModel):
    """The contents of ``model.json``; its values keep the bounds of ``params.yaml``, and are consistent.

    Attributes:
        ensemble: the networks, all of ``architecture``, whose outputs or boxes are combined; None: it is one network.
        calibration: maps of the scores after suppression or fusion, for each class; None, in older models: scores stay.
        operating_threshold: detections whose calibrated score is above it are reported; chosen on the val split, for
            each class. With one class, both are single values instead of lists.
        operating_rule: how it was chosen.
        best_epoch: 0-based epoch of these weights; ``val_map`` is the score that they reached.
        lateral_views: whether it was trained on lateral views too; otherwise they are set aside.
        started_from: the weights from which training started, in words.
        pretraining_leak: whether those are known to have seen NIH ChestX-ray14, of which RSNA's images are a part.
        signature: of this file and the weights, in base64; see `signature.py`.
    """

    model_config = ConfigDict(frozen=True, **CHECKED)

    format_version: int = Field(ge=FORMAT_VERSION, le=FORMAT_VERSION)
    classes: Annotated[tuple[ClassName, ...], Field(min_length=1)]
    architecture: Architecture
    ensemble: EnsembleSettings | None = None
    preprocessing: Preprocessing
    postprocessing: PostProcessing
    calibration: Calibration | tuple[Calibration, ...] | None = None
    operating_threshold: Fraction | tuple[Fraction, ...]
    operating_rule: Annotated[str, Field(max_length=10_000)] = ""
    best_epoch: int = Field(ge=0)
    val_map: float
    lateral_views: bool = False
    started_from: Annotated[str, Field(max_length=500)] = ""
    pretraining_leak: bool = False
    signature: Annotated[str, Field(max_length=200)] = ""

    @property
    def thresholds(self) -> tuple[float, ...]:
        """Return the operating threshold of each class."""
        return self.operating_threshold if isinstance(self.operating_threshold, tuple) else (self.operating_threshold,)

    @property
    def boxes_are_fused(self) -> bool:
        """Return whether there are several networks whose boxes, and not outputs, are combined."""
        return self.ensemble is not None and self.ensemble.fusion_thresh is not None

    @property
    def calibrations(self) -> tuple[Calibration | None, ...]:
        """Return the calibration of each class."""
        if self.calibration is None:
            return (None,) * len(self.classes)
        return self.calibration if isinstance(self.calibration, tuple) else (self.calibration,)

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        """Check the settings that must agree with each other."""
        network, channels = self.architecture, len(self.preprocessing.channels)
        if network.in_channels != channels:
            raise ValueError(f"architecture.in_channels {network.in_channels}, but preprocessing gives {channels}")
        if network.num_classes != len(self.classes):
            raise ValueError(f"architecture.num_classes {network.num_classes}, but {len(self.classes)} classes")
        for name, value in (("operating_threshold", self.operating_threshold), ("calibration", self.calibration)):
            given = len(value) if isinstance(value, tuple) else 1
            if value is not None and given != len(self.classes):
                raise ValueError(f"{name}: {given} for {len(self.classes)} classes")
        if self.postprocessing.score_gate and not network.image_classes:
            raise ValueError("postprocessing.score_gate needs the image-level head, architecture.image_classes")
        return self


def save_model(folder: Path, model: Detector, config: ModelConfig) -> None:
    """Write both files, each whole or not at all; the configuration last, with a signature if there is a key.

    Raises:
        UserError: a weight is not finite, the configuration would be refused when read, or the key cannot be used.
    """
    weights = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    require_finite(weights, f"{folder / WEIGHTS_FILE}: not written")
    _checked(_plain(config), f"{folder / CONFIG_FILE}: not written")
    write_atomic(folder / WEIGHTS_FILE, lambda path: save_file(weights, path))
    write_json(folder / CONFIG_FILE, signed(_plain(config), folder / WEIGHTS_FILE))


def load_model(folder: Path) -> tuple[Detector, ModelConfig]:
    """Rebuild a model on the CPU, in eval mode.

    Raises:
        UserError: a file is missing, damaged or out of bounds, a weight is not finite, the two files do not belong
            together, or a signature is required and they do not have it.
    """
    values = _read_values(folder / CONFIG_FILE)
    config = _checked(values, str(folder / CONFIG_FILE))
    path = folder / WEIGHTS_FILE
    try:
        require_signature(values, path, str(folder / CONFIG_FILE))
        layouts = read_layouts(path)  # before the network is built, which may be of any size
        model = _build(config, folder / CONFIG_FILE)
        require_layouts(layouts, model, f"{path}: damaged, or not of {CONFIG_FILE} beside it")
        model.load_state_dict(read_weights(path))
    except FileNotFoundError:
        raise UserError(f"{path}: {_NO_FILE}") from None
    return model.eval(), config


def _build(config: ModelConfig, path: Path) -> Detector:
    architecture, ensemble = config.architecture, config.ensemble
    try:
        if ensemble:
            return Ensemble([RetinaNet(architecture) for _ in range(ensemble.members)], ensemble.fusion_thresh)
        return RetinaNet(architecture)
    # timm has hundreds of models; those that cannot be a backbone fail with errors of any type.
    except Exception as error:  # noqa: BLE001
        raise UserError(
            f"{path}: architecture.backbone = {architecture.backbone!r}: cannot be built: {one_line(str(error))}"
        ) from None


def save_seen(folder: Path, patients: Iterable[str]) -> None:
    """Write hashes of the patients on whom a model was trained and chosen: it must not be scored on them."""
    write_json(folder / SEEN_FILE, sorted({patient_hash(patient) for patient in patients}))


def load_seen(folder: Path) -> set[str]:
    """Read the hashes that `save_seen` wrote.

    Raises:
        UserError: the file is missing or damaged.
    """
    path = folder / SEEN_FILE
    try:
        hashes = read_json(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    if not isinstance(hashes, list) or not all(isinstance(one, str) and _HASH.fullmatch(one) for one in hashes):
        raise UserError(f"{path}: must be a JSON list of hashes, 16 hexadecimal digits each")
    return set(hashes)


def patient_hash(patient: str) -> str:
    """Return the hash that stands for a patient's id outside the data set."""
    return hashlib.sha256(patient.encode()).hexdigest()[:16]


def read_config(path: Path) -> ModelConfig:
    """Read and check ``model.json``.

    Raises:
        UserError: it is missing, damaged or out of bounds.
    """
    return _checked(_read_values(path), str(path))


def _read_values(path: Path) -> dict[str, Any]:
    try:
        return read_json_object(path, _MAX_CONFIG_BYTES)
    except FileNotFoundError:
        raise UserError(f"{path}: {_NO_FILE}") from None


def _checked(values: dict[str, Any], source: str) -> ModelConfig:
    try:
        return ModelConfig.model_validate(values)
    except ValidationError as error:
        raise UserError(f"{source}: {first_problem(error)}") from None


def _plain(config: ModelConfig) -> dict[str, Any]:
    return config.model_dump(mode="json") | {
        "architecture": asdict(config.architecture),
        "preprocessing": asdict(config.preprocessing),
        "postprocessing": asdict(config.postprocessing),
        "ensemble": config.ensemble and asdict(config.ensemble),
        "calibration": _plain_calibration(config.calibration),
    }


def _plain_calibration(calibration: Calibration | tuple[Calibration, ...] | None) -> Any:
    if isinstance(calibration, tuple):
        return [asdict(one) for one in calibration]
    return calibration and asdict(calibration)


def pick_device() -> torch.device:
    """Return CUDA or MPS if available, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
