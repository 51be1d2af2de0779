"""One training step: forward pass, losses, backward pass, update; for one or more batches and processes."""

from collections.abc import Mapping
from typing import Any, cast

import torch
from lightning_fabric import Fabric
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from pipeline.detection.dataset import Batch
from pipeline.detection.device import compile_whole
from pipeline.detection.extra_losses import ExtraLosses
from pipeline.detection.losses import DetectionLoss, Totals
from pipeline.detection.retinanet import RetinaNet
from pipeline.training.network_with_losses import TOTAL, NetworkWithLosses, StepLosses, Values
from pipeline.training.optimizer import load_optimizer, make_optimizer, set_learning_rate, update_if
from pipeline.training.passes import Passes
from pipeline.training.settings import TrainSettings


class TrainStep:
    """Model, averaged weights, losses and optimizer."""

    def __init__(
        self, fabric: Fabric, model: RetinaNet, loss: DetectionLoss, extra: ExtraLosses, settings: TrainSettings
    ) -> None:
        if settings.channels_last:
            model = model.to(memory_format=torch.channels_last)
        # A float16 gradient scaler checks for overflows itself, and only takes optimizers that leave this to it.
        self._scaler: Any = getattr(fabric.strategy.precision, "scaler", None)
        optimizer = make_optimizer(settings, model, fabric.device, fused=self._scaler is None)
        self.fabric, self._clip_norm = fabric, settings.clip_norm
        self._module, self._optimizer = fabric.setup(NetworkWithLosses(model, StepLosses(loss, extra)), optimizer)
        self._passes = Passes(fabric, self._module, settings.batch_size, compiled=settings.compile)
        decay = get_ema_multi_avg_fn(settings.ema_decay)
        self._averaged = AveragedModel(self.model, multi_avg_fn=decay, use_buffers=True)
        if settings.compile:
            # The averaged copy is not compiled: it runs on other batch sizes, and once per epoch.
            graphs = can_be_cuda_graphs(fabric.device, settings.accumulate, fabric.world_size)
            compile_whole(self._inner, cuda_graphs=graphs)

    @property
    def _inner(self) -> NetworkWithLosses:
        return cast(NetworkWithLosses, self._module.module)

    @property
    def model(self) -> RetinaNet:
        """Return the model that is trained, without Fabric's wrapper."""
        return self._inner.network

    @property
    def losses(self) -> StepLosses:
        """Return the losses."""
        return cast(StepLosses, self._inner.losses)

    @property
    def averaged(self) -> RetinaNet:
        """Return the model with the moving average of the weights."""
        return cast(RetinaNet, self._averaged.module)

    def train(self) -> None:
        """Switch model and loss to training mode."""
        self._module.train()

    def weights(self) -> dict[str, dict[str, Tensor]]:
        """Return the weights that a checkpoint keeps in weight files."""
        return {"model": self.model.state_dict(), "averaged": self._averaged.state_dict()}

    def state(self) -> dict[str, Any]:
        """Return the rest of the state that a checkpoint keeps: plain containers and tensors."""
        scaler = self._scaler.state_dict() if self._scaler else {}
        return {"optimizer": self._optimizer.state_dict(), "loss": self.losses.detection.state_dict(), "scaler": scaler}

    def load(self, weights: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]) -> None:
        """Restore the results of `weights` and `state`."""
        self.model.load_state_dict(weights["model"])
        self._averaged.load_state_dict(weights["averaged"])
        load_optimizer(self._optimizer, state["optimizer"])
        self.losses.detection.load_state_dict(state["loss"])
        if self._scaler:
            self._scaler.load_state_dict(state["scaler"])

    def step(self, batches: list[Batch], lr: float) -> Values:
        """Make one update from the gradients of a few batches, as if they were one; nothing here waits for the device.

        A loss or gradient that is not finite changes no weight.

        Returns:
            Scalars on the device: the losses, ``train/gradient_norm``, and this process's share of counts.
        """
        set_learning_rate(self._optimizer, lr)
        with self._passes.rest_on_one_core():
            return self._step(batches)

    def _step(self, batches: list[Batch]) -> Values:
        alone = len(batches) == 1 and self.fabric.world_size == 1
        totals = None if alone else self._totals(batches)
        parts = []
        for number, batch in enumerate(batches, start=1):
            # The processes exchange gradients once, with the last batch.
            with self.fabric.no_backward_sync(self._module, enabled=number < len(batches)):
                parts.append(self._backward(batch, totals))
        norm = cast(
            Tensor,
            self.fabric.clip_gradients(
                self._module, self._optimizer, max_norm=self._clip_norm, error_if_nonfinite=False
            ),
        )
        values = {name: torch.stack([part[name] for part in parts]).sum(0) for name in parts[0]}
        self._update(values[TOTAL], norm)
        return values | {"train/gradient_norm": norm}

    def _update(self, loss: Tensor, norm: Tensor) -> None:
        usable = norm.isfinite()
        if self.fabric.world_size == 1:
            usable &= loss.isfinite()  # several processes each have their own, but must do the same
        update_if(usable, self._optimizer, has_scaler=self._scaler is not None)
        self._averaged.update_parameters(self.model)
        self._optimizer.zero_grad()

    def _totals(self, batches: list[Batch]) -> Totals:
        """Count images and positives before any of the batches' losses, because these are divided by the counts."""
        anchors, loss = self.model.anchors_for(batches[0].images), self.losses.detection
        # full(), not tensor(): the device fills in the value, so there is no copy to wait for.
        images = torch.full((), sum(len(batch.images) for batch in batches), device=self.fabric.device)
        positives = torch.stack([loss.count(anchors, batch.boxes, batch.labels) for batch in batches]).sum()
        totals = Totals(*self.over_processes(torch.stack([images, positives])))
        loss.observe(totals.positives)
        return totals

    def _backward(self, batch: Batch, totals: Totals | None) -> Values:
        """Add a batch's gradients; return its share of the step's losses, which are the sum of the shares."""
        values, backward = self._passes.forward(batch, totals)
        total, world_size = values[TOTAL], self.fabric.world_size
        backward(total * world_size if world_size > 1 else total)  # DDP averages over the processes
        return values | {TOTAL: total.detach()}

    def over_processes(self, value: Tensor) -> Tensor:
        """Return the sum of ``value`` over all processes."""
        if self.fabric.world_size == 1:
            return value
        return cast(Tensor, self.fabric.all_reduce(value.to(self.fabric.device), reduce_op="sum"))


def can_be_cuda_graphs(device: torch.device, accumulate: int, world_size: int) -> bool:
    """Return whether the passes of a step may be CUDA graphs.

    These keep gradients in memory of their own, to which neither a second batch nor other processes can add.
    """
    return device.type == "cuda" and accumulate == 1 and world_size == 1
