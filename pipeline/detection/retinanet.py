"""RetinaNet (Lin et al. 2017): backbone, feature pyramid, and two subnets over all its levels."""

import math
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from pipeline.detection.anchors import make_anchors
from pipeline.detection.backbones import Backbone, group_norm

# Grey levels of prepared images have about this mean and deviation.
PIXEL_MEAN, PIXEL_STD = 127.5, 64.0


@dataclass(frozen=True)
class Architecture:
    """All that is needed to rebuild a model; stored beside its weights."""

    backbone: str
    norm: str
    fpn_channels: int
    head_convs: int
    anchor_scales: tuple[float, ...]
    anchor_ratios: tuple[float, ...]
    prior_probability: float
    num_classes: int = 1


class HeadOutputs(NamedTuple):
    """Of all anchors of all levels: class logits ``[B, A, K]`` and box offsets ``[B, A, 4]``."""

    logits: Tensor
    deltas: Tensor


class Head(nn.Module):
    """A subnet: some 3 x 3 convolutions and a last one with ``outputs`` values per anchor."""

    def __init__(self, channels: int, convs: int, anchors: int, outputs: int, bias: float) -> None:
        super().__init__()
        self.outputs = outputs
        layers: list[nn.Module] = []
        for _ in range(convs):
            layers += [nn.Conv2d(channels, channels, 3, padding=1, bias=False), group_norm(channels), nn.ReLU(True)]
        self.tower = nn.Sequential(*layers)
        self.last = nn.Conv2d(channels, anchors * outputs, 3, padding=1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.01)
        nn.init.constant_(_bias(self.last), bias)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Levels of ``[B, C, H, W]`` -> ``[B, A, outputs]``; order: level, row, column, anchor."""
        flat = []
        for level in features:
            values = self.last(self.tower(level))  # (B, anchors * outputs, H, W)
            flat.append(values.permute(0, 2, 3, 1).reshape(len(values), -1, self.outputs))
        return torch.cat(flat, 1)


def _bias(conv: nn.Conv2d) -> Tensor:
    assert conv.bias is not None
    return conv.bias


class RetinaNet(nn.Module):
    """A one-stage detector of greyscale images of one size."""

    def __init__(self, architecture: Architecture, weights: str = "none") -> None:
        super().__init__()
        self.architecture = architecture
        self.backbone = Backbone(architecture.backbone, weights, architecture.norm)
        channels = architecture.fpn_channels
        self.fpn = FeaturePyramidNetwork(self.backbone.channels, channels, LastLevelP6P7(channels, channels))
        anchors = len(architecture.anchor_scales) * len(architecture.anchor_ratios)
        # Every anchor starts with this probability, or the many negatives drown the first steps.
        prior = -math.log((1 - architecture.prior_probability) / architecture.prior_probability)
        self.class_head = Head(channels, architecture.head_convs, anchors, architecture.num_classes, prior)
        self.box_head = Head(channels, architecture.head_convs, anchors, 4, 0.0)
        self._anchors: dict[tuple[int, int, torch.device], list[Tensor]] = {}

    def forward(self, images: Tensor) -> HeadOutputs:
        """Head outputs of images ``[B, 1, H, W]`` with grey levels 0 to 255 of any dtype."""
        normalized = (images.float() - PIXEL_MEAN) / PIXEL_STD
        features = self.backbone(normalized)
        pyramid = list(self.fpn(OrderedDict(zip("345", features, strict=True))).values())
        return HeadOutputs(self.class_head(pyramid), self.box_head(pyramid))

    def anchor_levels(self, images: Tensor) -> list[Tensor]:
        """Anchors of each level for images of this size, on their device; made once per size."""
        height, width = images.shape[-2:]
        key = (height, width, images.device)
        if key not in self._anchors:
            shapes = (self.architecture.anchor_scales, self.architecture.anchor_ratios)
            self._anchors[key] = [level.to(images.device) for level in make_anchors(height, width, *shapes)]
        return self._anchors[key]
