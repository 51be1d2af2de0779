"""The passes of a batch in parts: the outputs and gradients of the whole, on every core its own part."""

import threading
from dataclasses import replace

import pytest
import torch

from pipeline.detection.dataset import Batch
from pipeline.detection.device import make_fabric
from pipeline.detection.retinanet import RetinaNet
from pipeline.training import passes
from pipeline.training.network_with_losses import NetworkWithLosses
from pipeline.training.passes import Passes
from tests.detection.settings import TINY

FULL = replace(TINY, norm="frozen_batch", mask_head=True, image_classes=3)


@pytest.fixture(autouse=True)
def two_cores():
    own = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(own)


class Weighted(torch.nn.Module):
    """The mean of all outputs, each element with a weight of its own; it keeps the outputs."""

    def forward(self, outputs, *_):
        self.outputs = outputs
        return {"loss": sum((one * torch.linspace(-1, 1, one.numel()).reshape(one.shape)).mean() for one in outputs)}


class OneOutput(torch.nn.Module):
    def forward(self, outputs, *_):
        return {"loss": outputs.logits.sum()}


def batch_of(images):
    truth = torch.zeros(len(images), 1, 4), torch.zeros(len(images), 1), torch.zeros(len(images))
    return Batch(images, *truth, torch.arange(len(images)))


def make(batch_size, architecture=FULL, precision="32-true", losses=None, **options):
    torch.manual_seed(0)
    fabric = make_fabric("cpu", precision)
    network = RetinaNet(architecture).train().to(memory_format=torch.channels_last)
    network.dropout = 0.3
    network.backbone.freeze(1)
    module = NetworkWithLosses(network, losses or Weighted())
    return Passes(fabric, fabric.setup_module(module), batch_size, **{"compiled": False, **options}), network


def run(batch_size, whole, rounds=1, **changes):
    losses = Weighted()
    made, network = make(batch_size, **changes, losses=losses, compiled=whole)
    images = torch.randint(0, 256, (batch_size, 1, 128, 128), dtype=torch.uint8)
    for number in range(rounds):
        torch.manual_seed(number)
        values, backward = made.forward(batch_of(images))
        backward(values["loss"])
    return losses.outputs, {name: one.grad for name, one in network.named_parameters()}


@pytest.mark.parametrize("batch_size", [4, 11])
@pytest.mark.parametrize("rounds", [1, 2])
def test_equals_the_whole_batch(batch_size, rounds):
    """With dropout, all heads, frozen weights, and gradients that add up over batches."""
    outputs, gradients = run(batch_size, whole=False, rounds=rounds)
    expected, oracle = run(batch_size, whole=True, rounds=rounds)
    for one, other in zip(outputs, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    assert any(value is None for value in oracle.values())
    for name, value in oracle.items():
        assert (gradients[name] is None) == (value is None), name
        if value is not None:
            assert (gradients[name] - value).norm() <= 1e-4 * value.norm() + 1e-7, name


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_the_same_bits_each_time(precision):
    runs = [run(8, whole=False, precision=precision) for _ in range(3)]
    for outputs, gradients in runs[1:]:
        assert all(torch.equal(one, other) for one, other in zip(outputs, runs[0][0], strict=True))
        assert all(value is None or torch.equal(value, runs[0][1][name]) for name, value in gradients.items())
    assert all(one.dtype == torch.float32 for one in runs[0][0])


def test_an_output_that_the_loss_does_not_use():
    made, network = make(8, losses=OneOutput())
    values, backward = made.forward(batch_of(torch.zeros(8, 1, 128, 128)))
    backward(values["loss"])
    assert network.class_head.last.weight.grad.abs().sum() > 0
    assert network.box_head.last.weight.grad.abs().sum() == 0


def threads_of(made, network, batch_size):
    seen = []
    network.backbone.register_forward_pre_hook(lambda *_: seen.append(threading.current_thread().name))
    made.forward(batch_of(torch.zeros(batch_size, 1, 128, 128)))
    return seen


def test_each_part_has_its_thread_and_core():
    made, network = make(8)
    with made.rest_on_one_core():
        assert torch.get_num_threads() == 1
        assert sorted(threads_of(made, network, 8)) == ["part 0_0", "part 1_0"]
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize(
    ("batch_size", "changes"),
    [
        pytest.param(3, {}, id="few images"),
        pytest.param(8, {"compiled": True}, id="compiled"),
        pytest.param(8, {"architecture": replace(TINY, backbone="swin_tiny_patch4_window7_224")}, id="random depth"),
    ],
)
def test_the_whole_batch_at_once(batch_size, changes, monkeypatch):
    if "architecture" in changes:  # it takes no images of 128 pixels, so it is not run
        made, _ = make(batch_size, **changes)
    else:
        made, network = make(batch_size, **changes)
        assert threads_of(made, network, batch_size) == ["MainThread"]
    with made.rest_on_one_core():
        assert torch.get_num_threads() == 2
    monkeypatch.setattr(passes, "_draws_random_numbers", lambda _: False)
    if "architecture" in changes:
        with make(batch_size, **changes)[0].rest_on_one_core():
            assert torch.get_num_threads() == 1
