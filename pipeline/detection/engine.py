"""The training loop, on Lightning Fabric."""

import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, cast

import torch
from lightning_fabric import Fabric
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from pipeline.detection.checkpoint import (
    DamagedCheckpointError,
    drop_bests,
    load_best,
    load_checkpoint,
    save_best,
    save_checkpoint,
)
from pipeline.detection.dataset import Batch, DetectionDataset, EpochBatches, make_loader
from pipeline.detection.device import compile_whole
from pipeline.detection.extra_losses import ExtraLosses
from pipeline.detection.inference import predict
from pipeline.detection.losses import DetectionLoss, Totals
from pipeline.detection.optimizer import learning_rate, make_optimizer
from pipeline.detection.postprocess import Detections, PostProcessing
from pipeline.detection.profiling import PROFILE, profiled
from pipeline.detection.progress import EpochProgress, Stopwatch
from pipeline.detection.retinanet import RetinaNet
from pipeline.errors import Killed, UserError

logger = logging.getLogger(__name__)

Metrics = dict[str, float]
Values = dict[str, torch.Tensor | float]


@dataclass(frozen=True)
class TrainSettings:
    """How to train; the names are those of the ``train`` section of the params."""

    epochs: int
    batch_size: int
    accumulate: int
    optimizer: str
    lr: float
    momentum: float
    weight_decay: float
    warmup_epochs: float
    clip_norm: float
    channels_last: bool
    workers: int
    ema_decay: float
    compile: bool
    log_every_steps: int
    checkpoint_steps: int
    max_bad_steps: int
    patience: int
    profile_steps: int
    seed: int


@dataclass(frozen=True)
class Hooks:
    """What the caller does with the run: nothing here knows MLflow, metrics or signals.

    Attributes:
        on_step: takes metrics and the global step.
        on_epoch: takes the detections of the validation images and the 0-based epoch; returns
            the score by which epochs are compared, higher being better.
        before_checkpoint: makes what the others were given last.
        stop_requested: whether to end after the step at work, with a checkpoint.
    """

    on_step: Callable[[Metrics, int], None]
    on_epoch: Callable[[list[Detections], int], float]
    before_checkpoint: Callable[[], None] = lambda: None
    stop_requested: Callable[[], bool] = lambda: False


@dataclass(frozen=True)
class Best:
    """The epoch with the highest validation score, and its weights on the CPU."""

    epoch: int
    score: float
    weights: dict[str, torch.Tensor]


class Trainer:
    """One training run: model, averaged weights, optimizer, data, and where it stands.

    Attributes:
        epoch: 0-based.
        position: steps of this epoch that are done.
        best: of the epochs so far.
    """

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
        s = settings
        optimizer = make_optimizer(s.optimizer, model, s.lr, s.weight_decay, s.momentum)
        self.fabric, self.settings, self.rules, self.checkpoints = fabric, settings, rules, checkpoints
        self.model, self.optimizer = fabric.setup(model, optimizer)
        self.loss = cast(DetectionLoss, fabric.to_device(loss))
        self.extra_losses = extra_losses
        decay = get_ema_multi_avg_fn(settings.ema_decay)
        self.averaged = AveragedModel(self._bare(), multi_avg_fn=decay, use_buffers=True)
        if settings.compile:
            # The averaged copy stays as it is: it runs on other batch sizes, and once an epoch.
            compile_whole(self._bare())
            compile_whole(self.loss)
        self.train_data, self.val_data = train_data, val_data
        ranks = (fabric.global_rank, fabric.world_size)
        self.order = EpochBatches(len(train_data), s.batch_size, s.seed, True, *ranks)
        self.loader = make_loader(train_data, self.order, s.workers)
        self.epoch, self.position, self.best = 0, 0, Best(-1, -math.inf, {})
        self.bad_steps, self.skipped_steps = 0, 0

    def _bare(self) -> RetinaNet:
        module: RetinaNet = self.model.module
        return module

    def _averaged_model(self) -> RetinaNet:
        return cast(RetinaNet, self.averaged.module)

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in an epoch."""
        batches = math.ceil(len(self.train_data) / (self.settings.batch_size * self.fabric.world_size))
        return math.ceil(batches / self.settings.accumulate)

    @property
    def step(self) -> int:
        """Steps done in the whole run."""
        return self.epoch * self.steps_per_epoch + self.position

    def resume(self) -> bool:
        """Go on from the newest checkpoint; False where there is none."""
        found = load_checkpoint(self.checkpoints)
        if found is None:
            return False
        weights, state = found
        best = state["best"]
        try:
            best_weights = load_best(self.checkpoints, best["epoch"]) if best["epoch"] >= 0 else {}
        except DamagedCheckpointError as error:
            raise UserError(f"{self.checkpoints}: {error}; remove this folder to start afresh") from None
        self._bare().load_state_dict(weights["model"])
        self.averaged.load_state_dict(weights["averaged"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.loss.load_state_dict(state["loss"])
        self.epoch, self.position = state["epoch"], state["position"]
        self.bad_steps, self.skipped_steps = state["bad_steps"], state["skipped_steps"]
        self.best = Best(best["epoch"], best["score"], best_weights)
        _set_random_state(state["random"])
        return True

    def checkpoint(self, hooks: Hooks) -> None:
        """Write all that is needed to go on from here; of several processes the first does it."""
        hooks.before_checkpoint()
        if self.fabric.is_global_zero:
            self._save()
        self.fabric.barrier()

    def _save(self) -> None:
        weights = {"model": self._bare().state_dict(), "averaged": self.averaged.state_dict()}
        state = {
            "epoch": self.epoch,
            "position": self.position,
            "optimizer": self.optimizer.state_dict(),
            "loss": self.loss.state_dict(),
            "bad_steps": self.bad_steps,
            "skipped_steps": self.skipped_steps,
            "best": {"epoch": self.best.epoch, "score": self.best.score},
            "random": _random_state(),
        }
        save_checkpoint(self.checkpoints, self.step, weights, state)

    def fit(self, hooks: Hooks) -> Best:
        """Train what is left of the run; returns the best epoch.

        Raises:
            UserError: too many steps in a row gave no usable gradient, or the loader fails twice.
            Killed: `Hooks.stop_requested`; the checkpoint is written.
        """
        while self.epoch < self.settings.epochs and not self._out_of_patience():
            self._train_epoch(hooks)
            self._end_epoch(hooks)
        return self.best

    def _out_of_patience(self) -> bool:
        waited = self.epoch - 1 - self.best.epoch
        stop = 0 < self.settings.patience <= waited and self.epoch > 0
        if stop:
            logger.info("no better epoch for %d epochs: stopping (train.patience)", waited)
        return stop

    def _end_epoch(self, hooks: Hooks) -> None:
        """Validate the averaged weights, and keep them if they are the best."""
        stop = lambda: self._stop_if_asked(hooks)  # noqa: E731
        data, rules = self.val_data, self.rules
        found = predict(self.fabric, self._averaged_model(), data, self.settings.batch_size, rules, stop)
        own = hooks.on_epoch(found, self.epoch) if self.fabric.is_global_zero else 0.0
        score = self._sum(torch.tensor(own, dtype=torch.float64)).item()
        # Of equal epochs the later one: a first epoch that finds nothing must not win at 0.
        former = self.best.epoch
        if score >= self.best.score:
            weights = self._averaged_model().state_dict()
            self.best = Best(self.epoch, score, {name: value.detach().cpu().clone() for name, value in weights.items()})
            if self.fabric.is_global_zero:
                save_best(self.checkpoints, self.epoch, self.best.weights)
        self.epoch, self.position = self.epoch + 1, 0
        self.checkpoint(hooks)
        if former != self.best.epoch and self.fabric.is_global_zero:
            # Only now: the checkpoint that has just gone may have named an older best.
            drop_bests(self.checkpoints, {former, self.best.epoch})

    def _train_epoch(self, hooks: Hooks) -> None:
        self.model.train()
        self.loss.train()
        shown = EpochProgress(f"epoch {self.epoch + 1}/{self.settings.epochs}", self.steps_per_epoch, self.position)
        with shown, profiled(self._steps_to_profile(), self.checkpoints / PROFILE) as note_step:
            watch = Stopwatch()
            for group in watch.waiting(self._groups()):
                metrics = self._train_step([batch.to(self.fabric.device) for batch in group], self.step)
                self.position += 1
                note_step()
                watch.images += sum(batch.real for batch in group) * self.fabric.world_size
                self._report(metrics, watch, hooks, shown)
                if self.settings.checkpoint_steps and self.step % self.settings.checkpoint_steps == 0:
                    self.checkpoint(hooks)
                self._stop_if_asked(hooks)

    def _steps_to_profile(self) -> int:
        """Those of the run's first epoch, or of what a resumed run has left of it."""
        return self.settings.profile_steps if self.epoch == 0 else 0

    def _report(self, metrics: Values, watch: Stopwatch, hooks: Hooks, shown: EpochProgress) -> None:
        step = self.step - 1
        if step % self.settings.log_every_steps and self.position < self.steps_per_epoch:
            shown.advance()
            return
        # Reading values waits for the device; hence only now and then.
        values = self._over_ranks(metrics) | watch.metrics()
        values["train/skipped_steps"] = self.skipped_steps
        hooks.on_step(values, step)
        shown.advance(
            f"loss {values['train/loss']:.3f}  lr {values['train/lr']:.2g}"
            f"  {values['train/images_per_second']:.0f} images/s  data {values['train/data_wait_share']:.0%}"
        )

    def _stop_if_asked(self, hooks: Hooks) -> None:
        asked = self._sum(torch.tensor(float(hooks.stop_requested()))) if self.fabric.world_size > 1 else None
        if asked or (asked is None and hooks.stop_requested()):
            self.checkpoint(hooks)
            raise Killed(f"asked to stop; step {self.step} is kept in {self.checkpoints}")

    def _sum(self, value: torch.Tensor) -> torch.Tensor:
        """Over all processes."""
        if self.fabric.world_size == 1:
            return value
        return cast(torch.Tensor, self.fabric.all_reduce(value.to(self.fabric.device), reduce_op="sum"))

    def _over_ranks(self, metrics: Values) -> Metrics:
        """Losses and counts are shares that add up; learning rate and gradient are the same everywhere."""
        shares = sorted(name for name in metrics if name not in ("train/lr", "train/gradient_norm"))
        added = self._sum(torch.stack([torch.as_tensor(metrics[name]).double() for name in shares]))
        return {name: float(value) for name, value in metrics.items()} | dict(zip(shares, added.tolist(), strict=True))

    def _groups(self) -> Iterator[list[Batch]]:
        """What is left of the epoch, in groups of ``accumulate`` batches: one for each step."""
        batches = self._batches()
        while group := list(islice(batches, self.settings.accumulate)):
            yield group

    def _batches(self) -> Iterator[Batch]:
        """What is left of the epoch; a loader whose worker dies is started again, once."""
        failed = False
        place = self.position * self.settings.accumulate
        while True:
            self.order.start_at(self.epoch, place)
            try:
                for batch in self.loader:
                    place += 1
                    yield cast(Batch, batch)
                return
            except RuntimeError as error:
                if "DataLoader worker" not in str(error):
                    raise
                reason = " ".join(str(error).split())[:120]
                if failed:
                    raise UserError(f"train.workers = {self.settings.workers}: a loader died twice: {reason}") from None
                failed = True
                logger.warning("a data loader's worker died (%s); starting it again", reason)
                self.loader = make_loader(self.train_data, self.order, self.settings.workers)

    def _train_step(self, batches: list[Batch], step: int) -> Values:
        """One update from the gradients of a few batches, as if they were one."""
        warmup = round(self.settings.warmup_epochs * self.steps_per_epoch)
        lr = learning_rate(step, self.settings.epochs * self.steps_per_epoch, warmup, self.settings.lr)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        alone = len(batches) == 1 and self.fabric.world_size == 1
        totals = None if alone else self._totals(batches)
        parts = []
        for number, batch in enumerate(batches, start=1):
            # Gradients travel between processes once, with the last batch.
            with self.fabric.no_backward_sync(self.model, enabled=number < len(batches)):
                parts.append(self._backward(batch, totals))
        norm = self.fabric.clip_gradients(
            self.model, self.optimizer, max_norm=self.settings.clip_norm, error_if_nonfinite=False
        )
        metrics: Values = {name: sum(part[name] for part in parts) for name in parts[0]}
        self._update(float(metrics["train/loss"]), math.nan if norm is None else float(norm), lr, batches)
        return metrics | {"train/gradient_norm": norm if norm is not None else math.nan, "train/lr": lr}

    def _totals(self, batches: list[Batch]) -> Totals:
        """Counted before any of the batches' losses, which are divided by them."""
        anchors = self._bare().anchors_for(batches[0].images)
        real = [batch for batch in batches if batch.real]
        images = torch.tensor(sum(batch.real for batch in real), device=self.fabric.device)
        counts = [self.loss.count(anchors, batch.boxes, batch.labels) for batch in real]
        positives = sum(counts, torch.zeros_like(images))
        totals = Totals(*self._sum(torch.stack([images, positives])))
        self.loss.observe(totals.positives)
        return totals

    def _backward(self, batch: Batch, totals: Totals | None) -> Values:
        """Add a batch's gradients; returns its share of the step's losses, which add up."""
        share = 1.0 if totals is None else batch.real / totals.images
        # Of padding only the backward pass is needed: the processes wait for each other's.
        weight = self.fabric.world_size if batch.real else 0  # DDP averages over the processes
        outputs = self.model(batch.images)
        anchors = self._bare().anchors_for(batch.images)
        losses = self.loss(outputs.logits, outputs.deltas, anchors, batch.boxes, batch.labels, totals)
        extra = self.extra_losses(outputs, batch.boxes, batch.labels, batch.image_classes)
        extra = {name: value * share for name, value in extra.items()}
        total = losses.classification + losses.box + sum(extra.values())
        self.fabric.backward(total * weight if weight != 1 else total)
        real = float(weight > 0)
        return {
            "train/loss": total.detach() * real,
            "train/loss_classification": losses.classification.detach() * real,
            "train/loss_box": losses.box.detach() * real,
            **{f"train/loss_{name}": value.detach() * real for name, value in extra.items()},
            "train/positives_per_image": losses.positives * share,
        }

    def _update(self, loss: float, norm: float, lr: float, batches: list[Batch]) -> None:
        """Step with the gradient; pass over one that is not finite, but not too often in a row."""
        # Of several processes each has its own loss, and all must do the same.
        if math.isfinite(norm) and (math.isfinite(loss) or self.fabric.world_size > 1):
            self.optimizer.step()
            self.averaged.update_parameters(self._bare())
            self.bad_steps = 0
        else:
            self.bad_steps += 1
            self.skipped_steps += 1
            logger.warning("step %d: loss %g, gradient norm %g: no update", self.step, loss, norm)
        self.optimizer.zero_grad()
        if self.bad_steps >= self.settings.max_bad_steps:
            places = torch.cat([batch.indices for batch in batches]).tolist()
            names = self.train_data.names_of(places)
            raise UserError(
                f"train.lr = {self.settings.lr:g}: {self.bad_steps} steps in a row had no finite loss or gradient"
                f" (train.max_bad_steps); the last: epoch {self.epoch + 1}, loss {loss}, gradient norm {norm},"
                f" learning rate {lr:g}, studies {', '.join(names)}; lower train.lr or train.clip_norm"
            )


def _random_state() -> dict[str, Any]:
    """Of torch: order and augmentation depend on seed, epoch and study alone."""
    devices = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"cpu": torch.get_rng_state(), "cuda": devices}


def _set_random_state(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["cpu"])
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])
