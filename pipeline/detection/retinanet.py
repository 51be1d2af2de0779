"""RetinaNet (Lin et al. 2017): backbone, feature pyramid, and two subnets over all its levels."""

import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from pipeline.detection.anchors import Anchors, make_anchors
from pipeline.detection.backbones import Backbone, group_norm
from pipeline.detection.pointwise import replace_pointwise
from pipeline.detection.settings import Architecture

# Grey levels of prepared images have about this mean and standard deviation.
PIXEL_MEAN, PIXEL_STD = 127.5, 64.0


class HeadOutputs(NamedTuple):
    """Outputs of the heads for a batch.

    Attributes:
        logits: class logits of all anchors of all levels ``[B, A, K]``.
        deltas: their box offsets ``[B, A, 4]``.
        mask: logits ``[B, H / 8, W / 8]``, if there is a mask head and it was run.
        image_class: logits ``[B, C]``, if there is an image-level head.
    """

    logits: Tensor
    deltas: Tensor
    mask: Tensor | None = None
    image_class: Tensor | None = None

    def tensors(self) -> list[Tensor]:
        """Return the outputs that there are."""
        return [one for one in self if one is not None]

    def map(self, function: Callable[[Tensor], Tensor]) -> "HeadOutputs":
        """Return ``function`` of each output that there is."""
        return HeadOutputs(*(one if one is None else function(one) for one in self))  # type: ignore[arg-type]


class Head(nn.Module):
    """A subnet: ``convs`` 3 x 3 convolutions and a last one with ``outputs`` values per anchor."""

    def __init__(self, channels: int, convs: int, norm: str, anchors: int, outputs: int, bias: float) -> None:
        super().__init__()
        self.outputs = outputs
        self.tower = nn.Sequential(*(_block(channels, norm) for _ in range(convs)))
        self.last = nn.Conv2d(channels, anchors * outputs, 3, padding=1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.01)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.constant_(_bias(self.last), bias)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Apply the subnet to levels of ``[B, C, H, W]`` -> ``[B, A, outputs]``; order: level, row, column, anchor."""
        flat = []
        for level in features:
            values = self.last(self.tower(level))  # (B, anchors * outputs, H, W)
            flat.append(values.permute(0, 2, 3, 1).reshape(values.shape[0], -1, self.outputs))
        return torch.cat(flat, 1)


def _block(channels: int, norm: str) -> nn.Sequential:
    conv = nn.Conv2d(channels, channels, 3, padding=1, bias=norm == "none")
    return nn.Sequential(conv, *([] if norm == "none" else [group_norm(channels)]), nn.ReLU(inplace=True))


def _mask_head(channels: int) -> nn.Sequential:
    """Return two 3 x 3 convolutions and a 1 x 1 one, for the finest level."""
    return nn.Sequential(_block(channels, "none"), _block(channels, "none"), nn.Conv2d(channels, 1, 1))


def _bias(conv: nn.Conv2d) -> Tensor:
    assert conv.bias is not None
    return conv.bias


class RetinaNet(nn.Module):
    """A one-stage detector for batches of images of one size."""

    def __init__(self, architecture: Architecture, weights: str = "none", file: Path | None = None) -> None:
        super().__init__()
        self.architecture = a = architecture
        self.backbone = Backbone(a.backbone, weights, a.norm, a.in_channels, file)
        self.dropout = 0.0  # share of the backbone's feature channels; the trainer sets it
        coarse = LastLevelP6P7(a.fpn_channels if a.p6_source == "p5" else self.backbone.channels[-1], a.fpn_channels)
        coarse.use_P5 = a.p6_source == "p5"
        self.fpn = FeaturePyramidNetwork(self.backbone.channels, a.fpn_channels, coarse)
        # Every anchor starts with this probability; otherwise the many negatives dominate the first steps.
        prior = -math.log((1 - a.prior_probability) / a.prior_probability)
        tower = (a.fpn_channels, a.head_convs, a.head_norm, len(a.anchor_shapes))
        self.class_head = Head(*tower, a.num_classes, prior)
        self.box_head = Head(*tower, 4, 0.0)
        self.mask_head = _mask_head(a.fpn_channels) if a.mask_head else None
        self.image_head = nn.Linear(self.backbone.channels[-1], a.image_classes) if a.image_classes else None
        replace_pointwise(self)
        self._anchors: dict[tuple[int, int, torch.device], Anchors] = {}

    def forward(
        self, images: Tensor, with_mask: bool = False, dropout_factors: Sequence[Tensor] | None = None
    ) -> HeadOutputs:
        """Return the head outputs of images ``[B, C, H, W]`` with grey levels 0 to 255 of any dtype.

        The mask is computed in training mode, and if ``with_mask`` is set. The backbone's features are multiplied by
        ``dropout_factors``, see `draw_dropout`.
        """
        normalized = (images.float() - PIXEL_MEAN) / PIXEL_STD
        features = self.backbone(normalized)
        if dropout_factors is not None:
            features = [level * factor.to(level.dtype) for level, factor in zip(features, dropout_factors, strict=True)]
        pyramid = list(self.fpn(OrderedDict(zip("345", features, strict=True))).values())
        mask = self.mask_head(pyramid[0])[:, 0] if self.mask_head and (self.training or with_mask) else None
        image_class = self.image_head(features[-1].mean((2, 3))) if self.image_head else None
        return HeadOutputs(self.class_head(pyramid), self.box_head(pyramid), mask, image_class)

    def draw_dropout(self, images: Tensor) -> list[Tensor] | None:
        """Draw factors ``[B, C, 1, 1]`` for the three levels of features of a batch, None without dropout.

        They are 0 for channels that an image does without, and 1 / (1 - ``dropout``) for the others. A step draws
        them before the network runs, because its parts run in any order.
        """
        if not self.dropout:
            return None
        shapes = [(len(images), channels, 1, 1) for channels in self.backbone.channels]
        return [F.dropout(torch.ones(shape, device=images.device), self.dropout) for shape in shapes]

    def anchors_for(self, images: Tensor) -> Anchors:
        """Return the anchors for images of this size, on their device; they are made once per size."""
        height, width = images.shape[-2:]
        key = (height, width, images.device)
        if key not in self._anchors:
            self._anchors[key] = make_anchors(height, width, self.architecture.anchor_shapes).to(images.device)
        return self._anchors[key]
