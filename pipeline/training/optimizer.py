"""The optimizers, and the learning rate schedule of a run."""

import math
from typing import Any

import torch
from lightning_fabric.wrappers import _FabricOptimizer
from torch import Tensor, nn

from pipeline.training.settings import TrainSettings


def learning_rate(step: int, total: int, warmup: int, peak: float) -> float:
    """Return the learning rate: linear warm-up to ``peak`` over ``warmup`` steps, then a cosine to 0 at ``total``."""
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


def make_optimizer(
    settings: TrainSettings, model: nn.Module, device: torch.device, *, fused: bool
) -> torch.optim.Optimizer:
    """Make ``adamw``, or ``sgd`` with momentum as in the focal loss paper.

    Fused, for `update_if` without a scaler, it reads its learning rate on the device: a graph of the step stays valid.
    """
    groups = _decay_groups(model, settings.weight_decay)
    optimizer: torch.optim.Optimizer
    if settings.optimizer == "adamw":
        optimizer = torch.optim.AdamW(groups, lr=settings.lr, fused=fused)
    else:
        optimizer = torch.optim.SGD(groups, lr=settings.lr, momentum=settings.momentum, fused=fused)
        for group in groups if settings.momentum else []:
            for parameter in group["params"]:
                # torch leaves the buffer undefined if the very first step is skipped.
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    for group in optimizer.param_groups if fused else []:
        group["lr"] = torch.tensor(settings.lr, device=device)  # only now, because torch's checks would read it
    return optimizer


def set_learning_rate(optimizer: _FabricOptimizer, lr: float) -> None:
    """Set the rate of the next update; no copy to the device is waited for."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(lr)
        else:
            group["lr"] = lr


def load_optimizer(optimizer: _FabricOptimizer, state: dict[str, Any]) -> None:
    """Restore the state of an optimizer, but for its learning rate: `set_learning_rate` sets it before each step."""
    rates = [group["lr"] for group in optimizer.param_groups]
    optimizer.load_state_dict(state)
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate


def update_if(usable: Tensor, optimizer: _FabricOptimizer, *, has_scaler: bool) -> None:
    """Take one step of ``optimizer`` if ``usable`` (bool, a scalar on the device) is true, else none.

    The device decides, so that the CPU need not wait: fused optimizers read the flag by which a gradient
    scaler reports overflows. A float16 gradient scaler sets this flag, or its equivalent, itself.
    """
    if not has_scaler:
        vars(optimizer.optimizer).update(grad_scale=None, found_inf=(~usable).float())
    optimizer.step()


def _decay_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Return groups that decay matrices and kernels only; norm layers and biases have no scale to keep small."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [
        {"params": [parameter for parameter in trainable if parameter.ndim > 1], "weight_decay": weight_decay},
        {"params": [parameter for parameter in trainable if parameter.ndim <= 1], "weight_decay": 0.0},
    ]
