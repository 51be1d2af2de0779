"""timm backbones as feature pyramids' feet: features at strides 8, 16 and 32 of one-channel images."""

from typing import Any

import timm
from timm.utils.model import freeze_batch_norm_2d
from torch import Tensor, nn

from pipeline.errors import UserError

STRIDES = (8, 16, 32)


def group_norm(channels: int) -> nn.GroupNorm:
    """GroupNorm (Wu and He 2018) of at most 32 groups of at least 8 channels each.

    On the coarsest level of a small image, a group of one channel would be one number, and its
    normalised value always 0.
    """
    groups = next(
        count for count in (32, 16, 8, 4, 2, 1) if channels % count == 0 and channels // count >= min(8, channels)
    )
    return nn.GroupNorm(groups, channels)


class Backbone(nn.Module):
    """A timm model without its head; ``channels`` are those of its three outputs."""

    def __init__(self, name: str, weights: str, norm: str) -> None:
        super().__init__()
        self.body = _norm_layers(_create(name, weights), norm)
        features: Any = self.body.feature_info  # timm's; nn.Module knows no such attribute
        reductions = features.reduction()
        missing = [stride for stride in STRIDES if stride not in reductions]
        if missing:
            raise UserError(f"model.backbone = {name!r}: no features at stride {missing[0]}; needs 8, 16 and 32")
        self.levels = [reductions.index(stride) for stride in STRIDES]
        self.channels = [features.channels()[level] for level in self.levels]

    def forward(self, images: Tensor) -> list[Tensor]:
        """Features of ``[B, 1, H, W]`` at strides 8, 16, 32."""
        features = self.body(images)
        return [features[level] for level in self.levels]


def _create(name: str, weights: str) -> nn.Module:
    if not timm.is_model(name):
        near = ", ".join(timm.list_models(f"*{name[:6]}*")[:4]) or "resnet18, resnet50"
        raise UserError(f"model.backbone = {name!r}: not a timm model; near it are {near}")
    try:
        return timm.create_model(name, pretrained=weights == "imagenet", features_only=True, in_chans=1)
    except (OSError, RuntimeError) as error:
        if weights != "imagenet":
            raise
        raise UserError(
            f"model.weights = 'imagenet': the weights of {name} cannot be fetched"
            f" ({type(error).__name__}); check the network, or set model.weights: none"
        ) from None


def _norm_layers(body: nn.Module, norm: str) -> nn.Module:
    """Make the norm layers independent of the batch, so that a batch of one image trains."""
    if norm == "frozen_batch":
        frozen: nn.Module = freeze_batch_norm_2d(body)
        return frozen
    for parent in list(body.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.BatchNorm2d):
                # timm fuses norm and activation in some models; the activation stays.
                activation = getattr(child, "act", None)
                layer = group_norm(child.num_features)
                setattr(parent, name, nn.Sequential(layer, activation) if activation else layer)
    return body


def parameter_count(module: nn.Module) -> int:
    """Number of trainable parameters."""
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
