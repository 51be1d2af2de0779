"""Checkpoints of the last training that has ended, from which stage ``train`` can make its outputs again."""

import shutil
from pathlib import Path

# This file marks the checkpoints of a training that has ended. They stay until a training with other params, data or
# code begins, because stage `train` may have to run again without training: DVC was killed before it recorded the
# model, or only `evaluate.candidates` changed, from which the operating point is chosen once the training has ended.
ENDED = "ended"
# A folder gets another name before it is removed: what a kill leaves of it must not be taken for a run's checkpoints.
_REMOVED = ".removed"


def drop_ended(checkpoints: Path, except_for: Path) -> None:
    """Remove the checkpoints of trainings that have ended, other than those in the folder ``except_for``."""
    for left in checkpoints.glob(f"*{_REMOVED}"):
        shutil.rmtree(left)
    for folder in [mark.parent for mark in checkpoints.glob(f"*/{ENDED}") if mark.parent != except_for]:
        shutil.rmtree(folder.rename(folder.with_name(folder.name + _REMOVED)))
