"""Convolutions of 1 x 1 on one core: torch's values and gradients, by oneDNN."""

from dataclasses import replace

import pytest
import torch
from timm.layers import Conv2dSame
from torch import Tensor, nn
from torch.profiler import profile

from pipeline.detection.pointwise import PointwiseConv2d, is_pointwise
from pipeline.detection.retinanet import RetinaNet
from tests.detection.settings import TINY


@pytest.fixture(params=[1, 2])
def cores(request):
    own = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(own)


def _output_and_gradients(module: nn.Module, features: Tensor, autocast: bool) -> list[Tensor]:
    features = features.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        output = module(features)
    upstream = torch.linspace(-1, 2, output.numel()).reshape(output.shape)
    gradients = torch.autograd.grad((output.float() * upstream).sum(), [features, *module.parameters()])
    return [output.float(), *gradients]


@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("images", "size"), [(1, 5), (1, 64), (3, 5), (3, 32)])
@pytest.mark.parametrize("kind", [nn.Conv2d, Conv2dSame])
def test_equals_torch(kind, images, size, bias, autocast, cores):
    torch.manual_seed(size)
    conv = kind(12, 20, 1, bias=bias)
    assert is_pointwise(conv)
    features = torch.randn(images, 12, size, size).contiguous(memory_format=torch.channels_last)
    expected = _output_and_gradients(conv, features, autocast=False)
    got = _output_and_gradients(PointwiseConv2d(conv), features, autocast)
    for mine, oracle in zip(got, expected, strict=True):
        assert (mine - oracle).norm() <= (0.02 if autocast else 1e-5) * oracle.norm()


@pytest.mark.parametrize("norm", ["group", "frozen_batch"])
@pytest.mark.parametrize("images", [1, 2])
def test_no_convolution_takes_a_slow_path_that_onednn_could_take(norm, images, cores):
    network = RetinaNet(replace(TINY, backbone="tf_efficientnet_lite0", norm=norm)).backbone
    with torch.no_grad(), profile() as profiled:
        network(torch.rand(images, 1, 256, 256).contiguous(memory_format=torch.channels_last))
    calls = {one.key: one.count for one in profiled.key_averages()}
    assert "aten::slow_conv_dilated2d" not in calls  # slower than all others
    if images > 1:
        assert "aten::_slow_conv2d_forward" not in calls
        assert calls["aten::mkldnn_convolution"] > 40


def test_a_network_keeps_its_names():
    names = RetinaNet(TINY).state_dict().keys()
    assert "fpn.inner_blocks.0.0.weight" in names
    assert isinstance(RetinaNet(TINY).fpn.inner_blocks[0][0], PointwiseConv2d)
