"""The configuration of a model on disk, ``model.json``, and the names of its files. This module imports no PyTorch."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from pipeline.bounds import CHECKED, Fraction
from pipeline.class_names import ClassName
from pipeline.data.settings import Preprocessing
from pipeline.detection.settings import Architecture, EnsembleSettings, PostProcessing
from pipeline.documents import first_problem, read_json_object
from pipeline.errors import UserError
from pipeline.metrics.calibration import Calibration

WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "model.json"
SEEN_FILE = "seen.json"
FORMAT_VERSION = 1
# The rest of a sentence that begins with the name of the starting weights.
LEAK = "was trained on NIH ChestX-ray14, of which RSNA's images are a part: scores on test are too good"
NO_FILE = "no such file; run `dvc repro train`, or give the folder of a trained model"
_MAX_CONFIG_BYTES = 2**18

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


def read_config(path: Path) -> ModelConfig:
    """Read and check ``model.json``.

    Raises:
        UserError: it is missing, damaged or out of bounds.
    """
    return check_config(read_config_values(path), str(path))


def read_config_values(path: Path) -> dict[str, Any]:
    """Read ``model.json`` without checking its values.

    Raises:
        UserError: it is missing or damaged.
    """
    try:
        return read_json_object(path, _MAX_CONFIG_BYTES)
    except FileNotFoundError:
        raise UserError(f"{path}: {NO_FILE}") from None


def check_config(values: dict[str, Any], source: str) -> ModelConfig:
    """Return the configuration that ``values`` hold.

    Raises:
        UserError: they are out of bounds; the message begins with ``source``.
    """
    try:
        return ModelConfig.model_validate(values)
    except ValidationError as error:
        raise UserError(f"{source}: {first_problem(error)}") from None


def plain(config: ModelConfig) -> dict[str, Any]:
    """Return a configuration as ``model.json`` has it."""
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
