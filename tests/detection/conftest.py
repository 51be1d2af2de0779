from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.detection.dataset import DetectionDataset
from pipeline.training.settings import TrainSettings
from tests.detection.settings import LOSS, POST_PROCESSING, TINY


def randomize_norms(model):
    """Set random statistics and factors, so that every mistake in a norm shows."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_var, 0.5, 2.0)
            nn.init.normal_(module.running_mean, std=0.2)
            nn.init.uniform_(module.weight, 0.3, 0.7)
            nn.init.normal_(module.bias, std=0.2)


@pytest.fixture
def architecture():
    return TINY


@pytest.fixture
def loss_settings():
    return LOSS


@pytest.fixture
def post_processing():
    return replace(POST_PROCESSING, nms_thresh=0.3)


@pytest.fixture
def train_settings():
    return TrainSettings(
        epochs=2, batch_size=4, accumulate=1, optimizer="adamw", lr=0.002, momentum=0.9, weight_decay=0.01,
        warmup_epochs=0.5, clip_norm=1.0,
        channels_last=True, workers=0, ema_decay=0.9, compile=False, log_every_steps=1,
        checkpoint_steps=0, max_bad_steps=3, patience=0, profile_steps=0,
    )  # fmt: skip


@pytest.fixture
def squares():
    """Return ``(images, boxes)``: one bright square or none on the noise of each image."""
    rng = np.random.default_rng(0)
    images, boxes = [], []
    for number in range(16):
        image = rng.integers(40, 80, (128, 128), dtype=np.uint8)
        side, x, y = int(rng.integers(30, 60)), int(rng.integers(5, 60)), int(rng.integers(5, 60))
        if number % 4:
            image[y : y + side, x : x + side] += 120
            boxes.append(np.array([[x, y, x + side, y + side]], np.float32))
        else:
            boxes.append(np.zeros((0, 4), np.float32))
        images.append(image)
    return images, boxes


@pytest.fixture
def dataset(squares):
    return DetectionDataset(*squares, augmenter=None, seed=0)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)
