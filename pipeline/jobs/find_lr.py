"""A search for good learning rates: one short training run through all of them (Smith 2017, arXiv 1506.01186)."""

import math
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import numpy as np
import pandas as pd

from pipeline.assembly.inputs import read_inputs
from pipeline.assembly.training import make_trainer
from pipeline.detection.dataset import Batch
from pipeline.errors import UserError
from pipeline.files import write_atomic, write_text
from pipeline.params import Params
from pipeline.reports.lr_plot import plot_learning_rates
from pipeline.training.trainer import Trainer

_WINDOW = 9  # steps
_DIVERGED = 2.0  # times the lowest smoothed loss so far


def find_lr(params: Params, out: Path, steps: int, low: float, high: float) -> tuple[float, float]:
    """Train for ``steps`` steps while the rate rises from ``low`` to ``high``; return two rates.

    The loss falls fastest at the first rate and is lowest at the second; a run's peak rate lies between them.
    Write ``learning_rate.csv`` and ``learning_rate.png`` into ``out``, and discard the model.

    Raises:
        UserError: the loss falls at none of the rates.
    """
    splits = read_inputs(params)
    trainer = make_trainer(params, splits, out)
    rates, losses = _run(trainer, np.geomspace(low, high, steps).tolist())
    smooth = smoothed(losses)
    suggested = steepest(rates, smooth)
    lines = [f"{rate},{loss},{value}" for rate, loss, value in zip(rates, losses, smooth, strict=True)]
    write_text(out / "learning_rate.csv", "\n".join(["lr,loss,smoothed", *lines]) + "\n")
    picture = plot_learning_rates(rates, losses, smooth, suggested)
    write_atomic(out / "learning_rate.png", lambda path: path.write_bytes(picture))
    return suggested


def _run(trainer: Trainer, rates: list[float]) -> tuple[list[float], list[float]]:
    trainer.train_step.train()
    done: list[float] = []
    losses: list[float] = []
    for rate, batches in zip(rates, _forever(trainer), strict=False):
        values = trainer.train_step.step([batch.to(trainer.fabric.device) for batch in batches], rate)
        loss = values["train/loss"].item()
        if not math.isfinite(loss):
            break
        done.append(rate)
        losses.append(loss)
        smooth = smoothed(losses)
        if smooth[-1] > _DIVERGED * min(smooth):
            break
    return done, losses


def _forever(trainer: Trainer) -> Iterator[list[Batch]]:
    for epoch in count():
        yield from trainer.batches.groups(epoch, 0)


def smoothed(losses: list[float]) -> list[float]:
    """Take medians of neighbours, then their mean: the loss of a batch without any box may be forty times the usual."""
    medians = pd.Series(losses).rolling(_WINDOW, center=True, min_periods=1).median()
    averages: list[float] = medians.rolling(_WINDOW, center=True, min_periods=1).mean().tolist()
    return averages


def steepest(rates: list[float], smooth: list[float]) -> tuple[float, float]:
    """Return the rate at which the smoothed loss falls fastest, and the rate at which it is lowest.

    The fall is measured over the rate's logarithm, at rates below that of the lowest loss.

    Raises:
        UserError: the loss falls at none of the rates.
    """
    lowest = int(np.argmin(smooth)) if smooth else 0
    slopes = np.gradient(smooth, np.log(rates))[:lowest] if len(rates) > 2 else np.zeros(0)
    if not len(slopes) or slopes.min() >= 0:
        raise UserError(f"find-lr: the loss fell at none of {len(rates)} rates; try a lower --low or more --steps")
    return rates[int(slopes.argmin())], rates[lowest]
