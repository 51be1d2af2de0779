"""How to train."""

from dataclasses import dataclass


@dataclass(frozen=True)
class TrainSettings:
    """The names are those of the ``train`` section of the params."""

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
