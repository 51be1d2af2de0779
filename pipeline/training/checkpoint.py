"""Checkpoints, from which an interrupted training run resumes: each is one folder, complete or absent.

checkpoints/<fingerprint>/step-00000120/
model.safetensors      the weights
averaged.safetensors   their moving average
state.pt               optimizer and counters: tensors and plain containers
manifest.json          SHA-256 of each of these files, written last
checkpoints/<fingerprint>/best-0003.safetensors   the best epoch's weights, and best-0003.json its SHA-256
"""

import logging
import re
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from pipeline.documents import read_json_object
from pipeline.errors import UserError
from pipeline.files import directory_atomic, sha256_of, sync_file, write_atomic, write_json

logger = logging.getLogger(__name__)

KEPT = 2  # the one before the newest is kept in case the newest is damaged
_STATE, _MANIFEST = "state.pt", "manifest.json"
Weights = dict[str, Tensor]


class DamagedCheckpointError(Exception):
    """A file of a checkpoint is missing, or differs from the file that was written."""


def save_checkpoint(folder: Path, step: int, weights: dict[str, Weights], state: dict[str, Any]) -> None:
    """Write the state after ``step`` steps and remove all but the last two checkpoints.

    Args:
        folder: folder of the run's checkpoints.
        step: number of steps, counted over the whole run.
        weights: name of a file -> weights.
        state: tensors and plain containers only, so that loading it runs no code; its ``best`` holds
            the ``epoch`` of the weights that `save_best` wrote last, or -1.
    """
    with directory_atomic(folder / f"step-{step:08d}") as target:
        for name, tensors in weights.items():
            save_file(_plain(tensors), target / f"{name}.safetensors")
        torch.save(state, target / _STATE)
        files = sorted(target.iterdir())
        for path in files:
            sync_file(path)
        write_json(target / _MANIFEST, {path.name: sha256_of(path) for path in files})
    for old in _newest_first(folder)[KEPT:]:
        shutil.rmtree(old)


class Checkpoint(NamedTuple):
    """The arguments of `save_checkpoint`, and the best weights that the state names; all on the CPU."""

    weights: dict[str, Weights]
    state: dict[str, Any]
    best: Weights


def load_checkpoint(folder: Path) -> Checkpoint | None:
    """Load the newest undamaged checkpoint; return None if there is no checkpoint.

    Raises:
        UserError: there are checkpoints, and all are damaged.
    """
    paths = _newest_first(folder)
    for path in paths:
        try:
            weights, state = _load(path)
            epoch = state["best"]["epoch"]
            best = load_best(folder, epoch) if epoch >= 0 else {}
        except DamagedCheckpointError as error:
            logger.warning("%s: %s; trying the checkpoint before it", path, error)
            continue
        logger.info("resuming from %s", path)
        return Checkpoint(weights, state, best)
    if paths:
        raise UserError(f"{folder}: all its checkpoints are damaged; remove this folder to start afresh")
    return None


def snapshot(folder: Path, into: Path) -> str | None:
    """Link the newest checkpoint and all best weights into a folder of the same disk; return the checkpoint's name.

    Returns:
        None if there is no checkpoint, or if it was removed in the meantime because newer ones were written.
    """
    try:
        newest = _newest_first(folder)[0]
        (into / newest.name).mkdir()
        for path in (*newest.iterdir(), *folder.glob("best-*.*")):
            (into / path.relative_to(folder)).hardlink_to(path)
    except (IndexError, FileNotFoundError):
        return None
    return newest.name


def save_best(folder: Path, epoch: int, weights: Weights) -> None:
    """Write the best epoch's weights beside the checkpoints; `drop_bests` removes those that no checkpoint needs."""
    path = folder / f"best-{epoch:04d}.safetensors"
    write_atomic(path, lambda temporary: save_file(_plain(weights), temporary))
    write_json(path.with_suffix(".json"), {path.name: sha256_of(path)})


def load_best(folder: Path, epoch: int) -> Weights:
    """Load the weights that `save_best` wrote.

    Raises:
        DamagedCheckpointError: the file is missing or differs from the file that was written.
    """
    path = folder / f"best-{epoch:04d}.safetensors"
    _require_whole(path.parent, path.with_suffix(".json"))
    return load_file(path)


def drop_bests(folder: Path, kept: set[int]) -> None:
    """Remove the best weights of all epochs except ``kept``."""
    for path in folder.glob("best-*.*"):
        if int(path.stem.removeprefix("best-")) not in kept:
            path.unlink()


def _load(path: Path) -> tuple[dict[str, Weights], dict[str, Any]]:
    _require_whole(path, path / _MANIFEST)
    try:
        state: dict[str, Any] = torch.load(path / _STATE, map_location="cpu", weights_only=True)
        return {file.stem: load_file(file) for file in path.glob("*.safetensors")}, state
    except Exception as error:  # a file that was damaged before it was hashed can raise anything
        raise DamagedCheckpointError(f"cannot be read ({type(error).__name__})") from error


def _require_whole(folder: Path, manifest: Path) -> None:
    try:
        digests = read_json_object(manifest)
        wrong = [name for name, digest in digests.items() if sha256_of(folder / name) != digest]
    except (OSError, ValueError) as error:
        raise DamagedCheckpointError(f"{manifest.name} or a file that it names cannot be read ({error})") from None
    if wrong:
        raise DamagedCheckpointError(f"{wrong[0]} differs from the file that was written (SHA-256)")


def _plain(weights: Weights) -> Weights:
    # safetensors needs each tensor contiguous, in memory of its own.
    return {name: value.detach().cpu().contiguous().clone() for name, value in weights.items()}


def _newest_first(folder: Path) -> list[Path]:
    return sorted((path for path in folder.glob("step-*") if re.fullmatch(r"step-\d{8}", path.name)), reverse=True)
