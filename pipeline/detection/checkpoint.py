"""Where an interrupted training run goes on: one file per epoch, whole or absent."""

import logging
import re
from pathlib import Path
from typing import Any

import torch

from pipeline.files import write_atomic

logger = logging.getLogger(__name__)

KEPT = 2  # the one before the newest is there for the case that the newest is damaged


def save_checkpoint(folder: Path, epoch: int, state: dict[str, Any]) -> None:
    """Write the state after ``epoch`` and drop all but the last two.

    ``state`` holds tensors and plain containers only, so that loading it runs no code.
    """
    write_atomic(folder / f"epoch-{epoch:04d}.pt", lambda path: torch.save(state, path))
    for old in _newest_first(folder)[KEPT:]:
        old.unlink()


def load_checkpoint(folder: Path) -> dict[str, Any] | None:
    """The newest readable state in ``folder``, on the CPU; None where there is none."""
    for path in _newest_first(folder):
        try:
            state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # noqa: BLE001 - whatever a damaged file makes the reader raise
            logger.warning("%s: cannot be read (%s); trying the one before", path, type(error).__name__)
            continue
        logger.info("resuming from %s", path)
        return state
    return None


def _newest_first(folder: Path) -> list[Path]:
    return sorted((path for path in folder.glob("*.pt") if re.fullmatch(r"epoch-\d+\.pt", path.name)), reverse=True)
