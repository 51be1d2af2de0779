"""Fixtures of the training tests: they share the network and the data of the tests of `detection`."""

from tests.detection.conftest import (  # noqa: F401
    _seed,
    architecture,
    dataset,
    loss_settings,
    post_processing,
    squares,
    train_settings,
)  # fmt: skip
