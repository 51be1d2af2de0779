"""A model on disk: ``model.safetensors`` and ``model.json``, all that is needed to rebuild it."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from pipeline.data.clahe import Preparation
from pipeline.detection.postprocess import PostProcessing
from pipeline.detection.retinanet import Architecture, RetinaNet
from pipeline.errors import UserError
from pipeline.files import write_atomic, write_json

WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "model.json"
SEEN_FILE = "seen.json"
FORMAT_VERSION = 1


class ModelConfig(BaseModel):
    """The contents of ``model.json``.

    Attributes:
        operating_threshold: detections above it are reported; chosen on the val split.
        best_epoch: 0-based epoch whose weights these are, and ``val_map`` what they reached.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: int = Field(ge=FORMAT_VERSION, le=FORMAT_VERSION)
    classes: tuple[str, ...]
    architecture: Architecture
    preprocessing: Preparation
    postprocessing: PostProcessing
    operating_threshold: float = Field(ge=0, le=1)
    best_epoch: int
    val_map: float


def save_model(folder: Path, model: RetinaNet, config: ModelConfig) -> None:
    """Write both files, each whole or not at all; the configuration last."""
    weights = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    write_atomic(folder / WEIGHTS_FILE, lambda path: save_file(weights, path))
    plain = config.model_dump(mode="json") | {
        "architecture": asdict(config.architecture),
        "preprocessing": asdict(config.preprocessing),
        "postprocessing": asdict(config.postprocessing),
    }
    write_json(folder / CONFIG_FILE, plain)


def load_model(folder: Path) -> tuple[RetinaNet, ModelConfig]:
    """Rebuild a model on the CPU, in eval mode.

    Raises:
        UserError: a file is missing or damaged, or the two do not belong together.
    """
    config = _read_config(folder / CONFIG_FILE)
    model = RetinaNet(config.architecture)
    path = folder / WEIGHTS_FILE
    try:
        model.load_state_dict(load_file(path))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; run `dvc repro train`, or give the folder of a trained model") from None
    except (SafetensorError, RuntimeError) as error:
        raise UserError(f"{path}: damaged, or not of {CONFIG_FILE} beside it: {str(error).splitlines()[0]}") from None
    return model.eval(), config


def save_seen(folder: Path, patients: Iterable[str]) -> None:
    """Note which patients a model was trained and chosen on, as hashes: on them it must not be scored."""
    write_json(folder / SEEN_FILE, sorted({patient_hash(patient) for patient in patients}))


def load_seen(folder: Path) -> set[str]:
    """What `save_seen` wrote.

    Raises:
        UserError: the file is missing or damaged.
    """
    path = folder / SEEN_FILE
    try:
        return {str(one) for one in json.loads(path.read_text(encoding="utf-8"))}
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{path}: cannot be read: {' '.join(str(error).split())}") from None


def patient_hash(patient: str) -> str:
    """What stands for a patient's id outside the data set."""
    return hashlib.sha256(patient.encode()).hexdigest()[:16]


def _read_config(path: Path) -> ModelConfig:
    try:
        return ModelConfig.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; run `dvc repro train`, or give the folder of a trained model") from None
    except ValidationError as error:
        problem = error.errors()[0]
        key = ".".join(str(part) for part in problem["loc"])
        raise UserError(f"{path}: {key} = {problem['input']!r}: {problem['msg']}") from None
    except (ValueError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not JSON: {error}") from None


def pick_device() -> torch.device:
    """CUDA or MPS where there is one, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
