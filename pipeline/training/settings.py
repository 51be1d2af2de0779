"""The section of the params that the training loop takes as it is, with its bounds."""

from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from pipeline.bounds import CHECKED, Count, NotNegative, Positive, Workers


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class TrainSettings:
    """The training loop: epochs, batches, optimizer, and how often it logs and saves."""

    epochs: Count
    batch_size: Count
    accumulate: Count
    optimizer: Literal["adamw", "sgd"]
    lr: Positive
    momentum: Annotated[float, Field(ge=0, lt=1)]
    weight_decay: NotNegative
    warmup_epochs: NotNegative
    clip_norm: Positive
    channels_last: bool
    workers: Workers
    ema_decay: Annotated[float, Field(ge=0, lt=1)]
    compile: bool
    log_every_steps: Count
    checkpoint_steps: Annotated[int, Field(ge=0)]
    max_bad_steps: Count
    patience: Annotated[int, Field(ge=0)]
    profile_steps: Annotated[int, Field(ge=0, le=100)]
