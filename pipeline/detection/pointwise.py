"""Convolutions of 1 x 1 on one core of a CPU, and their gradients.

For float32, PyTorch does them there by itself, which takes two to three times as long as with oneDNN. A dilated
convolution it leaves to oneDNN; and a kernel of 1 x 1 has no gaps, so that dilation changes nothing.
"""

import torch
from timm.layers import Conv2dSame
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.detection.replacing import replace_convolutions

_LEAST_VALUES = 20480  # in ATen's Convolution.cpp


class PointwiseConv2d(nn.Module):
    """A convolution of 1 x 1 with the parameters of ``conv``."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.weight, self.bias = conv.weight, conv.bias

    def forward(self, features: Tensor) -> Tensor:
        """Return the convolution of ``[B, C, H, W]``."""
        return pointwise_conv2d(features, self.weight, self.bias)


def pointwise_conv2d(features: Tensor, kernel: Tensor, bias: Tensor | None) -> Tensor:
    """Return ``conv2d`` of features ``[B, C, H, W]`` with kernels ``[D, C, 1, 1]``."""
    return F.conv2d(features, kernel, bias, dilation=2 if _is_slow(features) else 1)


def _is_slow(features: Tensor) -> bool:
    if torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu"):
        return False
    # Not a subclass: those stand in for tensors where a graph is exported.
    real = type(features) is Tensor and features.is_cpu and features.dtype == torch.float32
    # The small features of a single image PyTorch never gives to oneDNN.
    return real and torch.get_num_threads() == 1 and (len(features) > 1 or features.numel() > _LEAST_VALUES)


def is_pointwise(conv: nn.Module) -> bool:
    """Return whether `pointwise_conv2d` can compute this convolution."""
    return (
        type(conv) in (nn.Conv2d, Conv2dSame)
        and isinstance(conv, nn.Conv2d)
        and conv.kernel_size == conv.stride == (1, 1)
        and conv.groups == 1
        and (isinstance(conv, Conv2dSame) or conv.padding == (0, 0))
    )


def replace_pointwise(body: nn.Module) -> None:
    """Replace the convolutions of 1 x 1 in ``body``; names and values of its parameters stay."""
    replace_convolutions(body, is_pointwise, PointwiseConv2d)
