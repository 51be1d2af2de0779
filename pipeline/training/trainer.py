"""The training loop, on Lightning Fabric."""

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from lightning_fabric import Fabric

from pipeline.detection.dataset import Batch, DetectionDataset
from pipeline.detection.extra_losses import ExtraLosses
from pipeline.detection.inference import predict
from pipeline.detection.losses import DetectionLoss
from pipeline.detection.postprocess import Detections
from pipeline.detection.retinanet import RetinaNet
from pipeline.detection.settings import PostProcessing
from pipeline.errors import Killed
from pipeline.training.batches import ResumableBatches
from pipeline.training.checkpoint import drop_bests, load_checkpoint, save_best, save_checkpoint
from pipeline.training.network_with_losses import TOTAL, Values
from pipeline.training.nonfinite import NonFiniteGuard
from pipeline.training.optimizer import learning_rate
from pipeline.training.profiling import PROFILE, profiled
from pipeline.training.progress import EpochProgress, Stopwatch
from pipeline.training.settings import TrainSettings
from pipeline.training.sharing import OtherProcesses
from pipeline.training.train_step import TrainStep

logger = logging.getLogger(__name__)

Metrics = dict[str, float]


@dataclass(frozen=True)
class Hooks:
    """Callbacks of the caller: nothing in the training loop knows MLflow, metrics or signals.

    Attributes:
        on_step: takes metrics and the global step.
        on_epoch: takes the detections of the validation images and the 0-based epoch; returns
            the score by which epochs are compared, higher being better.
        before_checkpoint: makes durable the values that the other hooks received.
        stop_requested: returns whether to end after the current step, with a checkpoint.
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
    """One training run: the model, its data, and the position in the run.

    Attributes:
        epoch: 0-based number of the current epoch.
        position: number of steps of this epoch that are done.
        best: best of the epochs so far.
    """

    def __init__(
        self,
        *,
        fabric: Fabric,
        model: RetinaNet,
        loss: DetectionLoss,
        extra_losses: ExtraLosses,
        train_data: DetectionDataset,
        val_data: DetectionDataset,
        post_processing: PostProcessing,
        settings: TrainSettings,
        seed: int,
        checkpoints: Path,
        augment: Callable[[Batch], Batch] | None = None,
    ) -> None:
        self.fabric, self.settings, self.post_processing, self.checkpoints = (
            fabric,
            settings,
            post_processing,
            checkpoints,
        )
        self.train_step = TrainStep(fabric, model, loss, extra_losses, settings)
        self.batches = ResumableBatches(train_data, settings, seed, fabric.global_rank, fabric.world_size)
        self.guard = NonFiniteGuard(train_data, settings, alone=fabric.world_size == 1)
        self.val_data, self._augment = val_data, augment
        self._seed = seed
        # Several processes of one training would be "others" to each other.
        alone_on_a_cpu = fabric.device.type == "cpu" and fabric.world_size == 1
        self._others = OtherProcesses() if alone_on_a_cpu else None
        self.epoch, self.position, self.best = 0, 0, Best(-1, -math.inf, {})

    @property
    def step(self) -> int:
        """Return the number of steps done in the whole run."""
        return self.epoch * self.batches.steps_per_epoch + self.position

    def resume(self) -> bool:
        """Resume from the newest checkpoint; return False if there is no checkpoint.

        Raises:
            UserError: there are checkpoints, and all are damaged.
        """
        checkpoint = load_checkpoint(self.checkpoints)
        if checkpoint is None:
            return False
        self.train_step.load(checkpoint.weights, checkpoint.state)
        self.guard.load(checkpoint.state["guard"])
        self.epoch, self.position = checkpoint.state["epoch"], checkpoint.state["position"]
        best = checkpoint.state["best"]
        self.best = Best(best["epoch"], best["score"], checkpoint.best)
        return True

    def checkpoint(self, hooks: Hooks) -> None:
        """Write everything needed to resume from here; in a run of several processes, the first writes it."""
        self.guard.settle()
        hooks.before_checkpoint()
        if self.fabric.is_global_zero:
            state = self.train_step.state() | {
                "epoch": self.epoch,
                "position": self.position,
                "guard": self.guard.state(),
                "best": {"epoch": self.best.epoch, "score": self.best.score},
            }
            save_checkpoint(self.checkpoints, self.step, self.train_step.weights(), state)
        self.fabric.barrier()

    def fit(self, hooks: Hooks) -> Best:
        """Train for the rest of the run; return the best epoch.

        Raises:
            UserError: too many steps in a row gave no usable gradient, or a worker of the loader dies twice.
            Killed: `Hooks.stop_requested` returned True; the checkpoint is written.
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
        detections = predict(
            self.fabric, self.train_step.averaged, self.val_data, self.settings.batch_size, self.post_processing, stop
        )
        own = hooks.on_epoch(detections, self.epoch) if self.fabric.is_global_zero else 0.0
        score = self.train_step.over_processes(torch.tensor(own, dtype=torch.float64)).item()
        # The later of two equal epochs is better: a first epoch that finds nothing must not win at 0.
        former = self.best.epoch
        if score >= self.best.score:
            weights = self.train_step.averaged.state_dict()
            self.best = Best(self.epoch, score, {name: value.detach().cpu().clone() for name, value in weights.items()})
            if self.fabric.is_global_zero:
                save_best(self.checkpoints, self.epoch, self.best.weights)
        self.epoch, self.position = self.epoch + 1, 0
        self.checkpoint(hooks)
        if former != self.best.epoch and self.fabric.is_global_zero:
            # Only now, because the checkpoint that was just removed may have named an older best.
            drop_bests(self.checkpoints, {former, self.best.epoch})

    def _train_epoch(self, hooks: Hooks) -> None:
        self.train_step.train()
        steps = self.batches.steps_per_epoch
        shown = EpochProgress(f"epoch {self.epoch + 1}/{self.settings.epochs}", steps, self.position)
        with shown, profiled(self._steps_to_profile(), self.checkpoints / PROFILE) as note_step:
            watch = Stopwatch()
            for group in watch.waiting(self.batches.groups(self.epoch, self.position)):
                values, lr = self._take_step([batch.to(self.fabric.device) for batch in group])
                self.position += 1
                note_step()
                watch.images += sum(len(batch.images) for batch in group) * self.fabric.world_size
                self._report(values, lr, watch, hooks, shown)
                if self.settings.checkpoint_steps and self.step % self.settings.checkpoint_steps == 0:
                    self.checkpoint(hooks)
                self._stop_if_asked(hooks)

    def _take_step(self, batches: list[Batch]) -> tuple[Values, float]:
        s, steps = self.settings, self.batches.steps_per_epoch
        lr = learning_rate(self.step, s.epochs * steps, round(s.warmup_epochs * steps), s.lr)
        # Random changes depend on the step, and not on what was drawn before it: a resumed run draws the same.
        torch.manual_seed(_seed_of(self._seed, self.step, self.fabric.global_rank))
        if self._augment:
            batches = [self._augment(batch) for batch in batches]
        values = self.train_step.step(batches, lr)
        self.guard.look(values[TOTAL], values["train/gradient_norm"], self.epoch, self.step, lr, batches)
        return values, lr

    def _steps_to_profile(self) -> int:
        """Return the number of steps to profile, all in the first epoch; a resumed run profiles in the rest of it."""
        return self.settings.profile_steps if self.epoch == 0 else 0

    def _report(self, values: Values, lr: float, watch: Stopwatch, hooks: Hooks, shown: EpochProgress) -> None:
        step = self.step - 1
        if step % self.settings.log_every_steps and self.position < self.batches.steps_per_epoch:
            shown.advance()
            return
        # Reading values waits for the device, so it is only done now and then.
        metrics = self._over_processes(values) | {"train/lr": lr} | watch.metrics()
        self.guard.settle()
        metrics["train/skipped_steps"] = self.guard.skipped
        hooks.on_step(metrics, step)
        if self._others:
            self._others.look()
        shown.advance(
            f"loss {metrics['train/loss']:.3f}  lr {lr:.2g}"
            f"  {metrics['train/images_per_second']:.0f} images/s  data {metrics['train/data_wait_share']:.0%}"
        )

    def _over_processes(self, values: Mapping[str, torch.Tensor]) -> Metrics:
        """Add up the processes' shares of losses and counts; the gradient norm is the same everywhere."""
        shares = [name for name in values if name != "train/gradient_norm"]
        added = self.train_step.over_processes(torch.stack([values[name].double() for name in shares]))
        return dict(zip(shares, added.tolist(), strict=True)) | {
            "train/gradient_norm": values["train/gradient_norm"].item()
        }

    def _stop_if_asked(self, hooks: Hooks) -> None:
        # All processes stop, or none: otherwise some would wait for a step that never comes.
        if self.train_step.over_processes(torch.tensor(float(hooks.stop_requested()))):
            self.checkpoint(hooks)
            raise Killed(f"asked to stop; step {self.step} is saved in {self.checkpoints}")


def _seed_of(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])
