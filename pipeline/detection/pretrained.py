"""Backbones that start from trained weights: timm's own, those of a Hugging Face repository, or those of a folder.

Weights are read from safetensors files only: a checkpoint that is a pickle can run any code.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import timm
from huggingface_hub import (
    constants,
    get_hf_file_metadata,
    hf_hub_download,
    hf_hub_url,
    is_offline_mode,
    try_to_load_from_cache,
)
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError

from pipeline.detection.settings import BACKBONE
from pipeline.documents import read_json_object
from pipeline.errors import UserError
from pipeline.escaping import one_line

CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"
_SOURCE = re.compile(r"(?P<kind>hf[-_]hub|local-dir):(?P<place>.+)")
# RSNA's images are a part of this data set.
_SEEN = re.compile(r"chest-?x-?ray-?14|\bnih\b|\brsna\b|(?<![a-z])(nih|rsna)(?![a-z])", re.IGNORECASE)


class Source(NamedTuple):
    """A backbone of timm, and the file of its weights; None: timm knows where its weights are, or there are none.

    ``trained_on`` names the data sets of the weights, as far as they are known.
    """

    architecture: str
    file: Path | None
    trained_on: tuple[str, ...]


def resolve_backbone(name: str) -> Source:
    """Find the architecture and the weights of ``model.backbone``.

    Args:
        name: a timm model; ``hf-hub:owner/name``, a repository of the Hugging Face hub; or ``local-dir:FOLDER``. The
            latter two hold ``config.json`` with the timm model's name as ``architecture``, and ``model.safetensors``.

    Raises:
        UserError: the repository or folder cannot be reached, or lacks a file, or names no timm model.
    """
    match = _SOURCE.fullmatch(name)
    if match is None:
        return Source(name, None, ())
    problem = f"model.backbone = {name!r}"
    if match["kind"] == "local-dir":
        config, file = (Path(match["place"]) / one for one in (CONFIG_FILE, WEIGHTS_FILE))
    else:
        config, file = (_download(match["place"], one, problem) for one in (CONFIG_FILE, WEIGHTS_FILE))
    try:
        values = read_json_object(config)
    except FileNotFoundError:
        raise UserError(f"{problem}: no {config}; it must name a timm model as architecture") from None
    if not file.exists():
        raise UserError(f"{problem}: no {file}; weights must be a safetensors file, see `pneumoflow convert-weights`")
    architecture = values.get("architecture")
    if not isinstance(architecture, str) or not re.fullmatch(BACKBONE, architecture) or not timm.is_model(architecture):
        raise UserError(f"{problem}: {config}: architecture {one_line(json.dumps(architecture))} is no timm model")
    if values.get("model_args"):
        raise UserError(f"{problem}: {config}: model_args are not supported; the architecture alone rebuilds a model")
    return Source(architecture, file, _trained_on(values, match["place"]))


def imagenet_file(architecture: str) -> Path | None:
    """Fetch timm's weights of an architecture; None: timm has none, or keeps them elsewhere than in the hub.

    Raises:
        UserError: timm knows no such weights, or the hub cannot be reached and its cache does not have them.
    """
    try:
        config = timm.get_pretrained_cfg(architecture)
    except RuntimeError as error:  # a name may end in a tag, which says which of several weights
        raise UserError(f"model.backbone = {architecture!r}: {one_line(str(error))}") from None
    if config is None or not config.hf_hub_id or config.hf_hub_filename:
        return None
    problem = f"model.weights = 'imagenet': the weights of {architecture}"
    return _download(config.hf_hub_id, WEIGHTS_FILE, problem, "check the network, or set model.weights: none")


def _download(repository: str, file: str, problem: str, advice: str = "check the name and the network") -> Path:
    try:
        _require_reachable(repository, file)
        return Path(hf_hub_download(repository, file))
    except LocalEntryNotFoundError:  # no network, and not in the cache
        raise UserError(f"{problem}: cannot be fetched; {advice}") from None
    except EntryNotFoundError:
        raise UserError(f"{problem}: the repository has no {file}; weights must be a safetensors file") from None
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"{problem}: cannot be fetched ({type(error).__name__}); {advice}") from None


def _require_reachable(repository: str, file: str) -> None:
    """Ask the hub once for a file that is not in the cache: ``hf_hub_download`` alone would ask for half a minute."""
    if is_offline_mode() or isinstance(try_to_load_from_cache(repository, file), str):
        return
    try:
        get_hf_file_metadata(hf_hub_url(repository, file), timeout=constants.HF_HUB_ETAG_TIMEOUT)
    except HfHubHTTPError:
        return  # the hub answers; the download's error is more exact
    # The library below the hub's has errors of its own, and changes.
    except Exception as error:  # noqa: BLE001
        raise ConnectionError(type(error).__name__) from None


def _trained_on(config: Mapping[str, Any], place: str) -> tuple[str, ...]:
    """Return the data sets that the configuration names, and those that the name of the repository or folder does."""
    listed = config.get("trained_on")
    named = tuple(str(one) for one in listed) if isinstance(listed, list) else ()
    return named or ((Path(place).name,) if _SEEN.search(Path(place).name) else ())


def saw_nih(trained_on: tuple[str, ...]) -> bool:
    """Return whether weights are known to have seen NIH ChestX-ray14, of which RSNA's images are a part."""
    return any(_SEEN.search(name) for name in trained_on)
