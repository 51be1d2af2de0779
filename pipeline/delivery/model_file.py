"""A model on disk: ``model.safetensors`` and ``model.json``, which are all that is needed to rebuild it."""

from pathlib import Path

import torch
from safetensors.torch import save_file

from pipeline.delivery.model_config import (
    CONFIG_FILE,
    NO_FILE,
    WEIGHTS_FILE,
    ModelConfig,
    check_config,
    plain,
    read_config_values,
)
from pipeline.delivery.signature import require_signature, signed
from pipeline.detection.detect import Detector
from pipeline.detection.ensemble import Ensemble
from pipeline.detection.retinanet import RetinaNet
from pipeline.detection.weight_file import read_layouts, read_weights, require_finite, require_layouts
from pipeline.errors import UserError
from pipeline.escaping import one_line
from pipeline.files import write_atomic, write_json


def save_model(folder: Path, model: Detector, config: ModelConfig) -> None:
    """Write both files, each whole or not at all; the configuration last, with a signature if there is a key.

    Raises:
        UserError: a weight is not finite, the configuration would be refused when read, or the key cannot be used.
    """
    weights = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    require_finite(weights, f"{folder / WEIGHTS_FILE}: not written")
    check_config(plain(config), f"{folder / CONFIG_FILE}: not written")
    write_atomic(folder / WEIGHTS_FILE, lambda path: save_file(weights, path))
    write_json(folder / CONFIG_FILE, signed(plain(config), folder / WEIGHTS_FILE))


def load_model(folder: Path) -> tuple[Detector, ModelConfig]:
    """Rebuild a model on the CPU, in eval mode.

    Raises:
        UserError: a file is missing, damaged or out of bounds, a weight is not finite, the two files do not belong
            together, or a signature is required and they do not have it.
    """
    values = read_config_values(folder / CONFIG_FILE)
    config = check_config(values, str(folder / CONFIG_FILE))
    path = folder / WEIGHTS_FILE
    try:
        require_signature(values, path, str(folder / CONFIG_FILE))
        layouts = read_layouts(path)  # before the network is built, which may be of any size
        model = _build(config, folder / CONFIG_FILE)
        require_layouts(layouts, model, f"{path}: damaged, or not of {CONFIG_FILE} beside it")
        model.load_state_dict(read_weights(path))
    except FileNotFoundError:
        raise UserError(f"{path}: {NO_FILE}") from None
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


def pick_device() -> torch.device:
    """Return CUDA or MPS if available, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
