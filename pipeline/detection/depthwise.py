"""Depthwise convolutions whose gradients do not slow a CPU down.

In bfloat16, oneDNN has fast kernels for a depthwise convolution itself, but not for all of its gradients: the gradient
of the input with a stride of 2, and that of a kernel of 5 x 5 and more, take 10 to 100 times as long as the
convolution. Here the first is computed in float32, and the second by windows of 3 x 3, which have a fast kernel.
"""

from typing import Any

import torch
from timm.layers import Conv2dSame, pad_same
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from pipeline.detection.replacing import replace_convolutions

_WINDOW = 3


class _Depthwise(torch.autograd.Function):
    """A depthwise convolution of bfloat16 features on the CPU, with gradients by the kernels that are fast there."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, kernel: Tensor, bias: Tensor | None, stride: int, padding: int) -> Tensor:
        ctx.save_for_backward(features, kernel)
        ctx.stride, ctx.padding = stride, padding
        return F.conv2d(features, kernel, bias, stride, padding, groups=len(kernel))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None]:
        features, kernel = ctx.saved_tensors
        wanted = ctx.needs_input_grad
        return (
            _features_gradient(upstream, features, kernel, ctx.stride, ctx.padding) if wanted[0] else None,
            _kernel_gradient(upstream, features, kernel, ctx.stride, ctx.padding) if wanted[1] else None,
            upstream.sum((0, 2, 3)) if wanted[2] else None,
            None,
            None,
        )


def _features_gradient(upstream: Tensor, features: Tensor, kernel: Tensor, stride: int, padding: int) -> Tensor:
    if stride > 1:
        wide = upstream.float(), features.float(), kernel.float()
        return _gradients(*wide, stride, padding, (True, False, False))[0].to(features.dtype)
    return _gradients(upstream, features, kernel, stride, padding, (True, False, False))[0]


def _kernel_gradient(upstream: Tensor, features: Tensor, kernel: Tensor, stride: int, padding: int) -> Tensor:
    side = kernel.shape[-1]
    if side <= _WINDOW:
        return _gradients(upstream, features, kernel, stride, padding, (False, True, False))[1]
    padded = F.pad(features, (padding,) * 4)
    height, width = ((size - 1) * stride + _WINDOW for size in upstream.shape[2:])  # that one window sees
    gradient = torch.empty_like(kernel)
    # The last window ends with the kernel; where windows overlap, both give the same values.
    starts = [*range(0, side - _WINDOW, _WINDOW), side - _WINDOW]
    for top in starts:
        for left in starts:
            window = (slice(None), slice(None), slice(top, top + _WINDOW), slice(left, left + _WINDOW))
            seen = padded[:, :, top : top + height, left : left + width].contiguous(memory_format=torch.channels_last)
            gradient[window] = _gradients(upstream, seen, kernel[window], stride, 0, (False, True, False))[1]
    return gradient


def _gradients(
    upstream: Tensor, features: Tensor, kernel: Tensor, stride: int, padding: int, wanted: tuple[bool, bool, bool]
) -> tuple[Tensor, Tensor, Tensor]:
    gradients: tuple[Tensor, Tensor, Tensor] = torch.ops.aten.convolution_backward(
        upstream, features, kernel.contiguous(), None, (stride, stride), (padding, padding), (1, 1), False, (0, 0),
        len(kernel), wanted,
    )  # fmt: skip
    return gradients


class DepthwiseConv2d(nn.Module):
    """A depthwise convolution with the parameters of ``conv``, a ``Conv2d`` or timm's ``Conv2dSame``."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.weight, self.bias = conv.weight, conv.bias
        self._stride, self._padding = conv.stride[0], _padding(conv)

    def forward(self, features: Tensor) -> Tensor:
        """Return the convolution of ``[B, C, H, W]``."""
        padding = self._padding
        if padding is None:
            features, padding = pad_same(features, list(self.weight.shape[-2:]), [self._stride] * 2), 0
        return depthwise_conv2d(features, self.weight, self.bias, self._stride, padding)


def depthwise_conv2d(features: Tensor, kernel: Tensor, bias: Tensor | None, stride: int, padding: int) -> Tensor:
    """Return ``conv2d`` of features ``[B, C, H, W]`` with kernels ``[C, 1, K, K]``, one for each channel."""
    if not _has_slow_gradients(features):
        return F.conv2d(features, kernel, bias, stride, padding, groups=len(kernel))
    cast = [part if part is None else part.to(torch.bfloat16) for part in (features, kernel, bias)]
    result: Tensor = _Depthwise.apply(*cast, stride, padding)
    return result


def _has_slow_gradients(features: Tensor) -> bool:
    if not features.is_cpu or not torch.is_grad_enabled() or torch.compiler.is_compiling():
        return False
    if torch.is_autocast_enabled("cpu"):
        return torch.get_autocast_dtype("cpu") == torch.bfloat16
    return features.dtype == torch.bfloat16


def is_depthwise(conv: nn.Module) -> bool:
    """Return whether `depthwise_conv2d` can compute this convolution."""
    return (
        type(conv) in (nn.Conv2d, Conv2dSame)
        and isinstance(conv, nn.Conv2d)
        and conv.groups == conv.in_channels == conv.out_channels > 1
        and conv.kernel_size[0] == conv.kernel_size[1]
        and conv.stride[0] == conv.stride[1]
        and conv.dilation == (1, 1)
        and conv.padding_mode == "zeros"
        and (isinstance(conv, Conv2dSame) or conv.padding in ((0, 0), (conv.kernel_size[0] // 2,) * 2))
    )


def _padding(conv: nn.Conv2d) -> int | None:
    """Return the padding of each side, or None if it depends on the size of the image."""
    if isinstance(conv, Conv2dSame):
        return None
    assert isinstance(conv.padding[0], int)
    return conv.padding[0]


def replace_depthwise(body: nn.Module) -> None:
    """Replace the depthwise convolutions in ``body``; names and values of its parameters stay."""
    replace_convolutions(body, is_depthwise, DepthwiseConv2d)
