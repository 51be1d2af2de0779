"""Depthwise convolutions: the values and gradients of torch's own, in float32 and in bfloat16."""

import pytest
import torch
from timm.layers import Conv2dSame
from torch import Tensor, nn

from pipeline.detection.backbones import Backbone
from pipeline.detection.depthwise import DepthwiseConv2d, is_depthwise

CHANNELS = 6
BF16_ERROR = 0.02


def _output_and_gradients(module: nn.Module, features: Tensor, autocast: bool) -> list[Tensor]:
    features = features.clone().requires_grad_()
    parameters = list(module.parameters())
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        output = module(features)
    assert output.dtype == (torch.bfloat16 if autocast else torch.float32)
    upstream = torch.linspace(-1, 2, output.numel()).reshape(output.shape)
    gradients = torch.autograd.grad((output.float() * upstream).sum(), [features, *parameters])
    return [output.float(), *gradients]


@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("size", [8, 13])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("side", [3, 4, 5, 7, 9])
@pytest.mark.parametrize("kind", [nn.Conv2d, Conv2dSame])
def test_equals_torch(kind: type[nn.Conv2d], side: int, stride: int, size: int, autocast: bool) -> None:
    torch.manual_seed(side)
    conv = kind(CHANNELS, CHANNELS, side, stride, side // 2, groups=CHANNELS)
    features = torch.randn(2, CHANNELS, size, size).contiguous(memory_format=torch.channels_last)
    expected = _output_and_gradients(conv, features, autocast=False)
    got = _output_and_gradients(DepthwiseConv2d(conv), features, autocast)
    for mine, oracle in zip(got, expected, strict=True):
        assert (mine - oracle).norm() <= (BF16_ERROR if autocast else 1e-5) * oracle.norm()


@pytest.mark.parametrize("norm", ["group", "frozen_batch"])
def test_a_backbone_keeps_its_parameters_and_gradients(norm: str) -> None:
    torch.manual_seed(0)
    backbone = Backbone("mobilenetv3_small_050", "none", norm)
    images = torch.rand(2, 1, 64, 64)
    weights = [name for name, module in backbone.named_modules() if isinstance(module, DepthwiseConv2d)]
    assert weights or norm == "frozen_batch"  # there, the norm and its convolution are one module

    def gradients(autocast: bool) -> dict[str, Tensor]:
        backbone.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            features = backbone(images)
        sum(level.float().square().mean() for level in features).backward()
        return {name: value.grad.clone() for name, value in backbone.named_parameters() if value.grad is not None}

    exact, half = gradients(False), gradients(True)
    assert exact.keys() == half.keys()
    assert any(value.shape[1:] == (1, 5, 5) for value in exact.values())
    for name, value in exact.items():
        if value.ndim == 4 and value.shape[1] == 1 and value.shape[2] > 1:
            cosine = nn.functional.cosine_similarity(value.flatten(), half[name].flatten(), dim=0)
            assert cosine > 0.95, name


@pytest.mark.parametrize(
    ("conv", "expected"),
    [
        (nn.Conv2d(4, 4, 3, padding=1, groups=4), True),
        (nn.Conv2d(4, 4, 5, 2, padding=2, groups=4), True),
        (nn.Conv2d(4, 8, 3, padding=1, groups=4), False),
        (nn.Conv2d(4, 4, 3, padding=1, groups=2), False),
        (nn.Conv2d(4, 4, 3, padding=2, dilation=2, groups=4), False),
        (nn.Conv2d(4, 4, (1, 3), padding=(0, 1), groups=4), False),
        (nn.Conv2d(4, 4, 3, padding=1, groups=4, padding_mode="reflect"), False),
        (nn.ReLU(), False),
    ],
)
def test_which_convolutions_are_depthwise(conv: nn.Module, expected: bool) -> None:
    assert is_depthwise(conv) is expected
