"""Weights of classifiers trained elsewhere, such as torchxrayvision's, as a folder that ``local-dir:`` reads."""

import logging
import pickle
from collections.abc import Sequence
from pathlib import Path

import timm
import torch
from safetensors.torch import save_file
from torch import Tensor

from pipeline.detection.pretrained import CONFIG_FILE, WEIGHTS_FILE
from pipeline.detection.retinanet import PIXEL_STD
from pipeline.detection.weight_file import require_finite
from pipeline.errors import UserError
from pipeline.escaping import one_line
from pipeline.files import directory_atomic, write_json

logger = logging.getLogger(__name__)

_PREFIXES = ("module.", "model.")
_GREY_LEVELS = 255


def convert_weights(
    state_dict: Path, out: Path, architecture: str, pixel_range: float | None, trained_on: Sequence[str]
) -> Path:
    """Write ``config.json`` and ``model.safetensors`` for ``model.backbone: local-dir:OUT``; return the folder.

    Args:
        state_dict: a file that ``torch.save(model.state_dict(), ...)`` wrote, with torchvision's or timm's names.
        out: folder to make.
        architecture: the timm model, such as densenet121 or resnet50, with one input channel or three.
        pixel_range: the model was trained on pixels from -pixel_range to pixel_range (torchxrayvision: 1024), and its
            first kernel is scaled to the pixels that our networks get. None: it stays.
        trained_on: the data sets that the weights have seen.

    Raises:
        UserError: the file holds anything but tensors, or the tensors are not those of the architecture.
    """
    weights = {_own_name(name): value for name, value in _read(state_dict).items()}
    kept = _of_architecture(weights, architecture, state_dict)
    require_finite(kept, str(state_dict))
    if pixel_range is not None:
        first = _first_kernel(architecture)
        # The middle grey level is 0 in both; ours have a standard deviation of 1 where theirs have pixel_range.
        kept[f"{first}.weight"] = kept[f"{first}.weight"] * (2 * pixel_range * PIXEL_STD / _GREY_LEVELS)
    with directory_atomic(out) as target:
        save_file({name: value.contiguous() for name, value in kept.items()}, target / WEIGHTS_FILE)
        config = {"architecture": architecture, "num_classes": 0, "trained_on": list(trained_on)}
        write_json(target / CONFIG_FILE, {**config, "pretrained_cfg": {"num_classes": 0}})
    return out


def _read(path: Path) -> dict[str, Tensor]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)  # tensors only: no code is run
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        reason = one_line(str(error)).split(". ")[0]
        raise UserError(
            f"{path}: not a state dict of tensors alone: {reason}; save one with torch.save(model.state_dict(), FILE)"
        ) from None
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise UserError(f"{path}: must hold a dict of tensors; save one with torch.save(model.state_dict(), FILE)")
    return content


def _first_kernel(architecture: str) -> str:
    config = timm.get_pretrained_cfg(architecture)
    first = config.first_conv if config else None
    if not isinstance(first, str):
        raise UserError(f"--architecture {architecture}: timm names no first kernel; densenet121 or resnet50 have one")
    return first


def _own_name(name: str) -> str:
    for prefix in _PREFIXES:
        name = name.removeprefix(prefix)
    return name


def _of_architecture(weights: dict[str, Tensor], architecture: str, path: Path) -> dict[str, Tensor]:
    """Return the tensors that the architecture without its classifier has.

    Raises:
        UserError: one is missing or has another shape.
    """
    if not timm.is_model(architecture):
        raise UserError(f"--architecture {architecture}: not a timm model")
    first = f"{_first_kernel(architecture)}.weight"
    if first not in weights:
        raise UserError(f"{path}: no {first} in it, which {architecture} has; give another --architecture")
    own = timm.create_model(architecture, num_classes=0, in_chans=weights[first].shape[1]).state_dict()
    for name, value in own.items():
        if name not in weights:
            raise UserError(f"{path}: no {name} in it, which {architecture} has; give another --architecture")
        if weights[name].shape != value.shape:
            shapes = f"{list(weights[name].shape)}, must be {list(value.shape)}"
            raise UserError(f"{path}: {one_line(name)} is {shapes} in {architecture}")
    return {name: weights[name] for name in own}
