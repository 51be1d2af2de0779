"""Checkpoints of trainings that have ended: kept until DVC has recorded the model, and then removed."""

import shutil
from pathlib import Path

from pipeline.paths import CHECKPOINTS

# This file marks the checkpoints of a training that has ended. The stage `evaluate` removes them. Until then DVC can
# be killed before it has recorded the model; it then deletes the model and runs `train` again, which makes the same
# model from these checkpoints.
ENDED = "ended"


def drop_ended(checkpoints: Path = CHECKPOINTS, except_for: Path | None = None) -> None:
    """Remove the checkpoints of trainings that have ended, because only interrupted trainings are resumed."""
    for mark in checkpoints.glob(f"*/{ENDED}"):
        if mark.parent != except_for:
            shutil.rmtree(mark.parent)
