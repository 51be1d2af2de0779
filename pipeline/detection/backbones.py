"""timm backbones that feed the feature pyramid: features at strides 8, 16 and 32."""

import hashlib
import logging
import operator
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
from timm.utils.model import freeze_batch_norm_2d
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.detection.depthwise import depthwise_conv2d, is_depthwise, replace_depthwise
from pipeline.detection.pointwise import is_pointwise, pointwise_conv2d
from pipeline.detection.simple_pyramid import SimplePyramid
from pipeline.detection.weight_file import read_weights
from pipeline.errors import UserError
from pipeline.escaping import one_line

STRIDES = (8, 16, 32)
_PATCH = 16  # of plain vision transformers
# It warns of weights that a backbone has no use for, such as a classifier's; `_require_loaded` checks the others.
logging.getLogger("timm.models._builder").addFilter(
    lambda record: not record.getMessage().startswith("Unexpected keys")
)
_LEAST_LOADED = 0.75  # share; timm adapts some kernels, and a deeper network of the same family has about half


def group_norm(channels: int) -> nn.GroupNorm:
    """Return a GroupNorm (Wu and He 2018) of at most 32 groups of at least 8 channels each.

    On the coarsest level of a small image, a group of one channel would be a single number, and its
    normalised value always 0.
    """
    groups = next(
        count for count in (32, 16, 8, 4, 2, 1) if channels % count == 0 and channels // count >= min(8, channels)
    )
    return nn.GroupNorm(groups, channels)


class _Kept(NamedTuple):
    """A frozen norm's factors and summands, and the buffers from which they were computed, with their versions."""

    buffers: list[Tensor]
    versions: list[int]
    scale: Tensor
    shift: Tensor


class FoldedConv2d(nn.Module):
    """A convolution without bias and the frozen BatchNorm that follows it, computed as one convolution.

    At each step the norm's factors are multiplied into the kernel: one pass over the (small) kernel
    replaces two over the (large) features, and the backward pass saves as many.
    """

    norm: Any  # timm's and torchvision's frozen norms: weight, bias, running_mean, running_var, eps

    def __init__(self, conv: nn.Conv2d, norm: nn.Module) -> None:
        super().__init__()
        self.weight, self.norm = conv.weight, norm
        self._kept: _Kept | None = None
        self._geometry: Any = (conv.stride, conv.padding, conv.dilation, conv.groups)
        self._depthwise, self._pointwise = is_depthwise(conv), is_pointwise(conv)

    def forward(self, features: Tensor) -> Tensor:
        """Return the normalised convolution of ``[B, C, H, W]``."""
        scale, shift = self._scale_and_shift()
        kernel = self.weight * scale
        if self._depthwise:
            (stride, _), (padding, _), *_ = self._geometry
            return depthwise_conv2d(features, kernel, shift, stride, padding)
        if self._pointwise:
            return pointwise_conv2d(features, kernel, shift)
        return F.conv2d(features, kernel, shift, *self._geometry)

    def _scale_and_shift(self) -> tuple[Tensor, Tensor]:
        """Return the norm's factors ``[C, 1, 1, 1]`` and summands ``[C]``, and keep them until its buffers change."""
        norm = self.norm
        buffers = [norm.weight, norm.bias, norm.running_mean, norm.running_var]
        # Tensors that were made in inference mode do not say when they change.
        if torch.compiler.is_compiling() or any(one.is_inference() for one in buffers):
            return _scale_and_shift(norm)
        versions = [one._version for one in buffers]
        kept = self._kept
        if kept is None or versions != kept.versions or any(map(operator.is_not, buffers, kept.buffers)):
            # In one assignment, because parts of a batch run at the same time.
            kept = self._kept = _Kept(buffers, versions, *_scale_and_shift(norm))
        return kept.scale, kept.shift


def _scale_and_shift(norm: Any) -> tuple[Tensor, Tensor]:
    scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
    return scale[:, None, None, None], norm.bias - norm.running_mean * scale


class Backbone(nn.Module):
    """A timm model without its head; ``channels`` are the channel counts of its three outputs.

    ``folded`` maps the name of each frozen norm of timm's model to the convolution that now holds it.
    """

    def __init__(self, name: str, weights: str, norm: str, in_channels: int = 1, file: Path | None = None) -> None:
        super().__init__()
        body = _create(name, weights, in_channels, file)
        self.folded: dict[str, str] = {}
        if norm == "frozen_batch":
            body = freeze_batch_norm_2d(body)
            if weights == "none":
                _open_branches(body)
            self.folded = _fold_frozen_norms(body, in_channels)
        else:
            _replace_batch_norms(body)
        replace_depthwise(body)
        self.body = body
        features: Any = self.body.feature_info  # set by timm; nn.Module declares no such attribute
        reductions = features.reduction()
        self.pyramid: SimplePyramid | None = None
        if set(reductions) == {_PATCH}:
            self.pyramid = SimplePyramid(features.channels()[-1])
            self.channels = self.pyramid.channels
            return
        missing = [stride for stride in STRIDES if stride not in reductions]
        if missing:
            raise UserError(
                f"model.backbone = {name!r}: no features at stride {missing[0]}; needs 8, 16 and 32, or patches of 16"
            )
        self.levels = [reductions.index(stride) for stride in STRIDES]
        self.channels = [features.channels()[level] for level in self.levels]

    def require_size(self, size: int, in_channels: int) -> None:
        """Run the backbone once on an empty image of ``size`` pixels.

        Raises:
            UserError: it takes no images of this size, or its features have other strides than it says.
        """
        try:
            with torch.no_grad():
                found = [tuple(level.shape[1:]) for level in self(torch.zeros(1, in_channels, size, size))]
        except Exception as error:  # noqa: BLE001 - the models assert, or fail in a matrix product
            reason = one_line(str(error)) or type(error).__name__
            raise UserError(f"model.backbone: takes no images of preprocess.image_size = {size}: {reason}") from None
        wanted = [(c, -(-size // s), -(-size // s)) for c, s in zip(self.channels, STRIDES, strict=True)]
        if found != wanted:
            raise UserError(
                f"model.backbone: of images of preprocess.image_size = {size} it makes features {found}, not {wanted}"
            )

    def freeze(self, stages: int) -> None:
        """Freeze the weights of the first ``stages`` stages: all before the next stage's features."""
        features: Any = self.body.feature_info
        names = features.module_name()
        if stages > len(names):
            raise UserError(f"model.frozen_stages = {stages}: the backbone has {len(names)}")
        # timm flattens some models: 'stages.1' is then named 'stages_1'.
        # It wraps others: 'blocks.1' is then named 'model.blocks.1'.
        next_stage = tuple(
            form for name in names[stages : stages + 1] for form in (name, name.replace(".", "_"), f"model.{name}")
        )
        for name, parameter in self.body.named_parameters() if stages else ():
            if next_stage and name.startswith(next_stage):
                return
            parameter.requires_grad_(False)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return the features of ``[B, C, H, W]`` at strides 8, 16, 32."""
        features = self.body(images)
        if self.pyramid is not None:
            levels: list[Tensor] = self.pyramid(features[-1])
            return levels
        return [features[level] for level in self.levels]


def _create(name: str, weights: str, in_channels: int, file: Path | None) -> nn.Module:
    if not timm.is_model(name):
        near = ", ".join(timm.list_models(f"*{name[:6]}*")[:4]) or "resnet18, resnet50"
        raise UserError(f"model.backbone = {name!r}: not a timm model; similar names: {near}")
    options: dict[str, Any] = {"pretrained": weights != "none", "features_only": True, "in_chans": in_channels}
    given: dict[str, Tensor] = {}
    if file is not None:
        given = read_weights(file)  # refuses damaged files
        options["pretrained_cfg_overlay"] = {"file": str(file)}
    try:
        body: Any = timm.create_model(name, **options)
        if set(body.feature_info.reduction()) == {_PATCH}:
            # Its position embeddings then fit images of any size.
            body = timm.create_model(name, **options, dynamic_img_size=True)
    except OSError as error:
        raise UserError(
            f"model.weights = {weights!r}: the weights of {name}: cannot be fetched"
            f" ({type(error).__name__}); check the network, or set model.weights: none"
        ) from None
    # timm has hundreds of models; those that cannot be a backbone fail with errors of any type.
    except Exception as error:  # noqa: BLE001
        reason = one_line(str(error)) or type(error).__name__
        raise UserError(f"model.backbone = {name!r}: cannot be a backbone here: {reason}") from None
    module: nn.Module = body
    if file is not None:
        _require_loaded(module, given, f"model.backbone = {name!r}: {file.name}")
    return module


def _require_loaded(body: nn.Module, given: Mapping[str, Tensor], source: str) -> None:
    """Refuse weights of another network: timm leaves a layer that it does not find in them at random.

    Kernels are compared by their values, because timm renames some, and adapts the first to the input's channels.

    Raises:
        UserError: less than ``_LEAST_LOADED`` of the network's kernels are in the file.
    """
    known = {_digest(tensor) for tensor in given.values() if tensor.ndim > 1}
    kernels = [tensor for tensor in body.state_dict().values() if tensor.ndim > 1]
    loaded = sum(_digest(tensor) in known for tensor in kernels)
    if loaded < _LEAST_LOADED * len(kernels):
        raise UserError(f"{source} has {loaded} of the network's {len(kernels)} kernels; are they of another network?")


def _digest(tensor: Tensor) -> bytes:
    return hashlib.blake2b(tensor.detach().float().contiguous().numpy().tobytes()).digest()


def _replace_batch_norms(body: nn.Module) -> None:
    """Replace BatchNorm by GroupNorm, which does not depend on the batch, so that a batch of one image trains."""
    for parent in list(body.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.BatchNorm2d):
                layer = group_norm(child.num_features)
                activation = _activation(child)
                setattr(parent, name, layer if activation is None else nn.Sequential(layer, activation))


def _open_branches(body: nn.Module) -> None:
    """Set every norm's factor to 1: untrained residual branches start with 0 and, frozen so, would never learn."""
    for module in body.modules():
        if isinstance(getattr(module, "running_var", None), Tensor):
            nn.init.ones_(module.get_buffer("weight"))


def _activation(norm: nn.Module) -> nn.Module | None:
    """Return the activation that timm has fused with a norm, if any: it stays when the norm is removed."""
    activation: nn.Module | None = getattr(norm, "act", None)
    return activation


def _fold_frozen_norms(body: nn.Module, in_channels: int) -> dict[str, str]:
    """Fold each frozen norm into the plain convolution before it; return norm name -> convolution name."""
    pairs = _conv_norm_pairs(body, in_channels)
    for norm_name, conv_name in pairs.items():
        conv, norm = body.get_submodule(conv_name), body.get_submodule(norm_name)
        assert isinstance(conv, nn.Conv2d)
        _replace(body, norm_name, _activation(norm) or nn.Identity())
        if hasattr(norm, "act"):
            norm.act = nn.Identity()
        _replace(body, conv_name, FoldedConv2d(conv, norm))
    return pairs


def _replace(body: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(body.get_submodule(parent), leaf, module)


def _conv_norm_pairs(body: nn.Module, in_channels: int) -> dict[str, str]:
    """Run the model once, and pair each norm with the convolution whose output it takes."""
    outputs: dict[int, tuple[str, Tensor]] = {}  # keeps the tensors too, so that no id is used twice
    pairs: dict[str, str] = {}
    hooks = []
    for name, module in body.named_modules():
        if type(module) is nn.Conv2d and module.bias is None:

            def note_output(_: nn.Module, __: Any, output: Tensor, name: str = name) -> None:
                outputs[id(output)] = (name, output)

            hooks.append(module.register_forward_hook(note_output))
        elif hasattr(module, "running_var"):

            def note_input(_: nn.Module, inputs: tuple[Tensor, ...], name: str = name) -> None:
                if id(inputs[0]) in outputs:
                    pairs[name] = outputs[id(inputs[0])][0]

            hooks.append(module.register_forward_pre_hook(note_input))
    with torch.no_grad():
        body(torch.zeros(1, in_channels, 64, 64))
    for hook in hooks:
        hook.remove()
    return pairs
