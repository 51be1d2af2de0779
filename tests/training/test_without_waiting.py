"""A training step waits for no GPU: run on tensors without values on a "cuda" device, see tests/detection."""

from dataclasses import replace

import pytest
import torch
from torch.nn.utils import clip_grad_norm_

from pipeline.detection.dataset import Batch
from pipeline.detection.device import compile_whole
from pipeline.detection.extra_losses import ExtraLosses
from pipeline.detection.losses import DetectionLoss
from pipeline.detection.mask_losses import MaskSettings
from pipeline.detection.retinanet import RetinaNet
from pipeline.training.network_with_losses import TOTAL, NetworkWithLosses, StepLosses
from pipeline.training.optimizer import make_optimizer, set_learning_rate, update_if
from pipeline.training.train_step import can_be_cuda_graphs
from tests.detection.settings import LOSS, TINY
from tests.detection.test_without_waiting import batch, fake_gpu


class Wrapped:
    """An optimizer in the place of Fabric's wrapper of it."""

    def __init__(self, optimizer):
        self.optimizer, self.param_groups, self.step = optimizer, optimizer.param_groups, optimizer.step


@pytest.mark.parametrize("kind", ["adamw", "sgd"])
def test_losses_and_update(kind, train_settings, monkeypatch):
    """All but the backward pass, whose place gradients of zeros take, and the optimizer's one kernel."""
    kernels = []
    for name in ("_fused_adamw_", "_fused_sgd_"):
        monkeypatch.setattr(torch, name, lambda *_, lr, found_inf, **__: kernels.append((lr, found_inf)))
    with fake_gpu():
        images, boxes, labels = batch()
        losses = StepLosses(DetectionLoss(LOSS), ExtraLosses(MaskSettings({}, 0.5, 10.0, 5.0), 0.0))
        module = NetworkWithLosses(RetinaNet(TINY), losses).train()
        optimizer = Wrapped(make_optimizer(replace(train_settings, optimizer=kind), module, images.device, fused=True))
        for lr in (0.1, 0.01):
            set_learning_rate(optimizer, lr)
            given = Batch(images, boxes, labels, torch.zeros(3, dtype=torch.int64), torch.zeros(3))
            values = module(images, module.network.draw_dropout(images), *module.truth(given, None))
            for one in module.parameters():
                one.grad = torch.zeros_like(one)
            norm = clip_grad_norm_(module.parameters(), 1.0)
            update_if(norm.isfinite() & values[TOTAL].isfinite(), optimizer, has_scaler=False)
        assert all(value.is_cuda for value in values.values())
        assert len(kernels) == 4  # twice, weights that decay and others
        assert all(lr.is_cuda and skip.is_cuda for lr, skip in kernels)


@pytest.mark.parametrize(
    ("device", "accumulate", "world_size", "can"),
    [("cuda", 1, 1, True), ("cuda", 2, 1, False), ("cuda", 1, 2, False), ("cpu", 1, 1, False)],
)
def test_which_steps_can_be_cuda_graphs(device, accumulate, world_size, can):
    assert can_be_cuda_graphs(torch.device(device), accumulate, world_size) == can


@pytest.mark.parametrize(("cuda_graphs", "mode"), [(True, "reduce-overhead"), (False, None)])
def test_cuda_graphs_are_a_mode_of_the_compiler(cuda_graphs, mode, monkeypatch):
    asked = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.nn.Module, "compile", lambda _, **options: asked.append(options))
    compile_whole(torch.nn.ReLU(), cuda_graphs=cuda_graphs)
    assert asked == [{"fullgraph": True, "dynamic": False, "mode": mode}]
