"""Steps whose loss or gradient is not finite: they are counted and logged, and too many in a row end the training.

On a GPU a step is checked one step late. The step itself skips its update on the device (`update_if`), so nothing in it
waits for a value or branches on one, and it can be captured as one graph.
"""

import logging
import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pipeline.detection.dataset import Batch, DetectionDataset
from pipeline.errors import UserError
from pipeline.training.settings import TrainSettings

logger = logging.getLogger(__name__)


class _Step(NamedTuple):
    """The values for the message about a step; ``outcome`` is loss and gradient norm, on its way to the CPU."""

    outcome: Tensor
    arrived: torch.cuda.Event | None
    epoch: int
    step: int
    lr: float
    studies: list[Tensor]  # positions in the data set; the images are not kept


class NonFiniteGuard:
    """A guard that checks each step's loss and gradient norm: on a GPU one step late, when it need not wait for them.

    Attributes:
        skipped: number of steps of the run without an update.
    """

    def __init__(self, data: DetectionDataset, settings: TrainSettings, alone: bool) -> None:
        self._data, self._settings, self._alone = data, settings, alone
        self.skipped, self._in_a_row = 0, 0
        self._waiting: _Step | None = None

    def state(self) -> dict[str, Any]:
        """Return the state for a checkpoint; call `settle` first."""
        return {"skipped": self.skipped, "in_a_row": self._in_a_row}

    def load(self, state: dict[str, Any]) -> None:
        """Restore the result of `state`."""
        self.skipped, self._in_a_row = state["skipped"], state["in_a_row"]

    def look(self, loss: Tensor, norm: Tensor, epoch: int, step: int, lr: float, batches: list[Batch]) -> None:
        """Take a step's loss and gradient norm; judge this step or, on a GPU, the one before.

        Raises:
            UserError: too many steps in a row gave no usable gradient.
        """
        late = loss.is_cuda
        outcome = torch.stack([loss, norm.to(loss.dtype)]).to("cpu", non_blocking=late)
        arrived = None
        if late:
            arrived = torch.cuda.Event()
            arrived.record()
        self.settle()
        self._waiting = _Step(outcome, arrived, epoch, step, lr, [batch.indices for batch in batches])
        if not late:
            self.settle()

    def settle(self) -> None:
        """Judge the step that is still waiting, if there is one."""
        step, self._waiting = self._waiting, None
        if step is None:
            return
        if step.arrived is not None:
            step.arrived.synchronize()
        loss, norm = step.outcome.tolist()
        # Several processes each have their own loss but must decide alike, so only the norm counts there.
        if math.isfinite(norm) and (math.isfinite(loss) or not self._alone):
            self._in_a_row = 0
            return
        self._in_a_row += 1
        self.skipped += 1
        logger.warning("step %d: loss %g, gradient norm %g: no update", step.step, loss, norm)
        if self._in_a_row >= self._settings.max_bad_steps:
            self._stop(step, loss, norm)

    def _stop(self, step: _Step, loss: float, norm: float) -> None:
        names = self._data.names_of(torch.cat(step.studies).tolist())
        raise UserError(
            f"train.lr = {self._settings.lr:g}: {self._in_a_row} steps in a row had no finite loss or gradient"
            f" (train.max_bad_steps); the last: epoch {step.epoch + 1}, loss {loss}, gradient norm {norm},"
            f" learning rate {step.lr:g}, studies {', '.join(names)}; lower train.lr or train.clip_norm"
        )
