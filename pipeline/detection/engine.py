"""The training loop and inference, on Lightning Fabric."""

import logging
import math
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from lightning_fabric import Fabric
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader

from pipeline.detection.checkpoint import load_checkpoint, save_checkpoint
from pipeline.detection.dataset import Batch, DetectionDataset, EpochSampler, Example, make_loader
from pipeline.detection.extra_losses import ExtraLosses
from pipeline.detection.losses import DetectionLoss
from pipeline.detection.postprocess import Detections, PostProcessing, find
from pipeline.detection.progress import EpochProgress
from pipeline.detection.retinanet import RetinaNet
from pipeline.errors import UserError

logger = logging.getLogger(__name__)

Metrics = dict[str, float]


@dataclass(frozen=True)
class TrainSettings:
    """How to train; the names are those of the ``train`` section of the params."""

    epochs: int
    batch_size: int
    lr: float
    weight_decay: float
    warmup_epochs: float
    clip_norm: float
    channels_last: bool
    workers: int
    ema_decay: float
    compile: bool
    log_every_steps: int
    seed: int


@dataclass(frozen=True)
class Hooks:
    """What the caller does with the run: nothing here knows MLflow or metrics.

    Attributes:
        on_step: takes metrics and the global step.
        on_epoch: takes the detections of the validation images and the 0-based epoch; returns
            the score by which epochs are compared, higher being better.
    """

    on_step: Callable[[Metrics, int], None]
    on_epoch: Callable[[list[Detections], int], float]


@dataclass(frozen=True)
class Best:
    """The epoch with the highest validation score, and its weights on the CPU."""

    epoch: int
    score: float
    weights: dict[str, torch.Tensor]


def make_fabric(accelerator: str, precision: str) -> Fabric:
    """A single-device Fabric: CUDA or MPS where there is one, else the CPU.

    Raises:
        UserError: the asked accelerator is not there.
    """
    # Fabric casts what enters and leaves the model; its own messages are of no use to users.
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    try:
        fabric = Fabric(accelerator=accelerator, devices=1, precision=precision)  # type: ignore[arg-type]
    except (RuntimeError, ValueError) as error:
        raise UserError(f"train.accelerator = {accelerator!r}: {' '.join(str(error).split())}") from None
    fabric.launch()
    return fabric


def learning_rate(step: int, total: int, warmup: int, peak: float) -> float:
    """Linear warm-up to ``peak`` over ``warmup`` steps, then a cosine down to 0 at ``total``."""
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


def compile_whole(module: nn.Module) -> None:
    """Compile ``module`` in place, as one graph.

    Raises:
        UserError: there is no C++ compiler, which the compiled code needs on a CPU.
    """
    compiler = os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")
    if not torch.cuda.is_available() and shutil.which(compiler) is None:
        raise UserError(
            f"train.compile = true: needs the C++ compiler {compiler}, which is not there; install one, name another"
            " in CXX, or set train.compile: false"
        )
    # On a CPU the box loss picks its anchors: how many there are is in the data, and the graph may say so.
    torch._dynamo.config.capture_dynamic_output_shape_ops = True
    module.compile(fullgraph=True)


class Trainer:
    """One training run: model, averaged weights, optimizer, data, and where it stands."""

    def __init__(
        self,
        fabric: Fabric,
        model: RetinaNet,
        loss: DetectionLoss,
        extra_losses: ExtraLosses,
        train_data: DetectionDataset,
        val_data: DetectionDataset,
        rules: PostProcessing,
        settings: TrainSettings,
        checkpoints: Path,
    ) -> None:
        if settings.channels_last:
            model = model.to(memory_format=torch.channels_last)
        optimizer = torch.optim.AdamW(_decay_groups(model, settings.weight_decay), lr=settings.lr, fused=True)
        self.fabric, self.settings, self.rules, self.checkpoints = fabric, settings, rules, checkpoints
        self.model, self.optimizer = fabric.setup(model, optimizer)
        self.loss = fabric.to_device(loss)
        self.extra_losses = extra_losses
        decay = get_ema_multi_avg_fn(settings.ema_decay)
        self.averaged = AveragedModel(self._bare(), multi_avg_fn=decay, use_buffers=True)
        if settings.compile:
            # The averaged copy stays as it is: it runs on other batch sizes, and once an epoch.
            compile_whole(self._bare())
            compile_whole(self.loss)
        self.sampler = EpochSampler(len(train_data), settings.seed, shuffle=True)
        self.loader = make_loader(train_data, self.sampler, settings.batch_size, settings.workers)
        self.val_data = val_data
        self.epoch, self.best = 0, Best(-1, -math.inf, {})

    def _bare(self) -> RetinaNet:
        module: RetinaNet = self.model.module
        return module

    def _averaged_model(self) -> RetinaNet:
        return cast(RetinaNet, self.averaged.module)

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in an epoch."""
        return len(self.loader)

    def resume(self) -> bool:
        """Go on from the newest checkpoint; False where there is none."""
        state = load_checkpoint(self.checkpoints)
        if state is None:
            return False
        self._bare().load_state_dict(state["model"])
        self.averaged.load_state_dict(state["averaged"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.loss.load_state_dict(state["loss"])
        self.epoch = state["epoch"] + 1
        self.best = Best(**state["best"])
        return True

    def fit(self, hooks: Hooks) -> Best:
        """Train the remaining epochs; a checkpoint after each. Returns the best epoch.

        Raises:
            UserError: the loss is no longer a number.
        """
        while self.epoch < self.settings.epochs:
            self._train_epoch(hooks.on_step)
            detections = predict(
                self.fabric, self._averaged_model(), self.val_data, self.settings.batch_size, self.rules
            )
            score = hooks.on_epoch(detections, self.epoch)
            # Of equal epochs the later one: a first epoch that finds nothing must not win at 0.
            if score >= self.best.score:
                weights = {
                    name: value.detach().cpu().clone() for name, value in self.averaged.module.state_dict().items()
                }
                self.best = Best(self.epoch, score, weights)
            save_checkpoint(self.checkpoints, self.epoch, self._state())
            self.epoch += 1
        return self.best

    def _state(self) -> dict[str, Any]:
        return {
            "epoch": self.epoch,
            "model": self._bare().state_dict(),
            "averaged": self.averaged.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "loss": self.loss.state_dict(),
            "best": {"epoch": self.best.epoch, "score": self.best.score, "weights": self.best.weights},
        }

    def _train_epoch(self, on_step: Callable[[Metrics, int], None]) -> None:
        self.model.train()
        self.loss.train()
        self.sampler.epoch = self.epoch
        first = self.epoch * self.steps_per_epoch
        shown = EpochProgress(f"epoch {self.epoch + 1}/{self.settings.epochs}", self.steps_per_epoch)
        with shown:
            started, images = time.perf_counter(), 0
            for step, batch in enumerate(self.loader, start=first):
                metrics = self._train_step(batch.to(self.fabric.device), step)
                images += len(batch.images)
                last = step == first + self.steps_per_epoch - 1
                if step % self.settings.log_every_steps and not last:
                    shown.advance()
                    continue
                # Reading values waits for the device; hence only now and then.
                values = {name: float(value) for name, value in metrics.items()}
                values["train/images_per_second"] = images / (time.perf_counter() - started)
                self._require_finite(values, batch)
                on_step(values, step)
                shown.advance(f"loss {values['train/loss']:.3f}  {values['train/images_per_second']:.0f} images/s")

    def _train_step(self, batch: Batch, step: int) -> dict[str, torch.Tensor | float]:
        warmup = round(self.settings.warmup_epochs * self.steps_per_epoch)
        lr = learning_rate(step, self.settings.epochs * self.steps_per_epoch, warmup, self.settings.lr)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        outputs = self.model(batch.images)
        anchors = self._bare().anchors_for(batch.images)
        losses = self.loss(outputs.logits, outputs.deltas, anchors, batch.boxes, batch.labels)
        extra = self.extra_losses(outputs, batch.boxes, batch.labels, batch.image_classes)
        total = losses.classification + losses.box + sum(extra.values())
        self.fabric.backward(total)
        norm = self.fabric.clip_gradients(
            self.model, self.optimizer, max_norm=self.settings.clip_norm, error_if_nonfinite=False
        )
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.averaged.update_parameters(self._bare())
        return {
            "train/loss": total.detach(),
            "train/loss_classification": losses.classification.detach(),
            "train/loss_box": losses.box.detach(),
            **{f"train/loss_{name}": value.detach() for name, value in extra.items()},
            "train/positives_per_image": losses.positives,
            "train/gradient_norm": norm if norm is not None else math.nan,
            "train/lr": lr,
        }

    def _require_finite(self, values: Metrics, batch: Batch) -> None:
        if not math.isfinite(values["train/loss"]):
            raise UserError(
                f"train.lr = {self.settings.lr:g}: the loss is {values['train/loss']} in epoch {self.epoch + 1}"
                f" (images {batch.indices.tolist()} of the train split); lower train.lr or train.clip_norm"
            )


def _decay_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Decay matrices and kernels only; norm layers and biases have no scale to be kept small."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [
        {"params": [parameter for parameter in trainable if parameter.ndim > 1], "weight_decay": weight_decay},
        {"params": [parameter for parameter in trainable if parameter.ndim <= 1], "weight_decay": 0.0},
    ]


@torch.no_grad()
def predict(
    fabric: Fabric, model: RetinaNet, data: DetectionDataset, batch_size: int, rules: PostProcessing
) -> list[Detections]:
    """Detections of every image of ``data``, in its order, on the CPU; the model's mode is kept."""
    was_training = model.training
    model.eval()
    loader = make_loader(data, EpochSampler(len(data), 0, shuffle=False), batch_size, workers=0)
    results: list[Detections] = []
    for batch in _batches(loader):
        images = batch.images.to(fabric.device)
        with fabric.autocast():
            found = find(model, images, rules)
        results += [{name: value.cpu() for name, value in one.items()} for one in found]
    model.train(was_training)
    return results


def _batches(loader: DataLoader[Example]) -> Iterator[Batch]:
    yield from loader
