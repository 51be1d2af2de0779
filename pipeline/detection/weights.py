"""Initial weights for training: torchvision's COCO weights, a model of this project, or none.

torchvision's RetinaNet and ours have the same layers under these names:

    torchvision                                    ours
    backbone.body.<timm's name>                    backbone.body.<timm's name>
    backbone.body.<...>.bn1 (a frozen norm)        backbone.body.<...>.conv1.norm (see FoldedConv2d)
    backbone.fpn                                   fpn
    head.classification_head.conv.<i>.<0|1>        class_head.tower.<i>.<0|1>
    head.classification_head.cls_logits            class_head.last
    head.regression_head.conv.<i>.<0|1>            box_head.tower.<i>.<0|1>
    head.regression_head.bbox_reg                  box_head.last
"""

import logging
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision.models.detection import RetinaNet_ResNet50_FPN_V2_Weights, RetinaNet_ResNet50_FPN_Weights

from pipeline.detection.backbones import FoldedConv2d
from pipeline.detection.retinanet import RetinaNet
from pipeline.detection.weight_file import read_weights
from pipeline.errors import UserError

logger = logging.getLogger(__name__)

_PARTS = {
    "backbone.fpn.": "fpn.",
    "head.classification_head.conv.": "class_head.tower.",
    "head.classification_head.cls_logits.": "class_head.last.",
    "head.regression_head.conv.": "box_head.tower.",
    "head.regression_head.bbox_reg.": "box_head.last.",
}
_BODY = "backbone.body."
_CLASS_LAYER = "class_head.last."


def start_from(model: RetinaNet, weights: str) -> None:
    """Load the weights of ``model.weights``: ``coco`` or a path; those of others are in the backbone already.

    Raises:
        UserError: the weights cannot be fetched or read, or do not fit this architecture.
    """
    if weights in ("none", "imagenet", "pretrained"):
        return
    if weights == "coco":
        state = fetch_coco(model)
        # torchvision's first version was trained with an eps of 0 in its frozen norms.
        load_torchvision(model, state, eps=0.0 if model.architecture.head_norm == "none" else 1e-5)
        return
    _load_path(model, Path(weights))


def fetch_coco(model: RetinaNet) -> dict[str, Tensor]:
    """Download torchvision's weights for this architecture: version 2 if the heads have norms, else version 1."""
    a = model.architecture
    kind = (a.backbone, a.norm, a.fpn_channels, a.head_convs, len(a.anchor_shapes), a.p6_source, a.head_norm)
    known = {
        ("resnet50", "frozen_batch", 256, 4, 9, "p5", "none"): RetinaNet_ResNet50_FPN_Weights.COCO_V1,
        ("resnet50", "frozen_batch", 256, 4, 9, "c5", "group"): RetinaNet_ResNet50_FPN_V2_Weights.COCO_V1,
    }
    if kind not in known:
        raise UserError(
            "model.weights = 'coco': needs backbone resnet50, norm frozen_batch, fpn_channels 256, head_convs 4, 9"
            " anchors per cell, and p6_source p5 with head_norm none, or c5 with group"
        )
    url = known[kind].url
    try:
        state: dict[str, Tensor] = torch.hub.load_state_dict_from_url(
            url, map_location="cpu", check_hash=True, weights_only=True
        )
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"model.weights = 'coco': {url} cannot be fetched ({type(error).__name__}); put the file into"
            f" {torch.hub.get_dir()}/checkpoints, or set model.weights: none"
        ) from None
    return state


def load_torchvision(model: RetinaNet, state: Mapping[str, Tensor], eps: float) -> None:
    """Copy the weights of a torchvision RetinaNet into ``model``.

    Args:
        model: a model of the same architecture; classes and input channels may differ.
        state: torchvision's state dict; see this module's docstring for the names.
        eps: eps of torchvision's norms; our norms keep their own, and their factors are scaled to compensate.

    Raises:
        UserError: a weight is missing or has another shape.
    """
    names = {norm: f"{conv}.norm" for norm, conv in model.backbone.folded.items()}
    translated = {
        _our_name(name, names): value for name, value in state.items() if not name.endswith("num_batches_tracked")
    }
    _adapt_stem(model, translated)
    _load(model, translated, "torchvision's weights")
    for module in model.modules():
        if isinstance(module, FoldedConv2d):
            norm = module.norm  # its buffers have no gradient
            norm.weight *= torch.sqrt((norm.running_var + norm.eps) / (norm.running_var + eps))


def _our_name(name: str, norms: Mapping[str, str]) -> str:
    for theirs, ours in _PARTS.items():
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    module, _, leaf = name.removeprefix(_BODY).rpartition(".")
    return f"{_BODY}{norms.get(module, module)}.{leaf}"


def _adapt_stem(model: RetinaNet, state: dict[str, Tensor]) -> None:
    """Sum the first kernel over colours if the images are grey; spread the sum evenly over any other channels."""
    name = f"{_BODY}conv1.weight"
    channels = model.architecture.in_channels
    if name in state and state[name].shape[1] != channels:
        state[name] = state[name].sum(1, keepdim=True).repeat(1, channels, 1, 1) / channels


def _load_path(model: RetinaNet, path: Path) -> None:
    file = path / "model.safetensors" if path.is_dir() else path
    try:
        state = read_weights(file)
    except (OSError, UserError) as error:
        raise UserError(
            f"model.weights = {str(path)!r}: not a readable safetensors file ({error}); give none, imagenet, pretrained"
            ", coco or the path of a trained model"
        ) from None
    _load(model, state, str(file))


def _load(model: nn.Module, state: dict[str, Tensor], source: str) -> None:
    own = model.state_dict()
    fresh = [
        name for name in own if name.startswith(_CLASS_LAYER) and name in state and state[name].shape != own[name].shape
    ]
    if fresh:
        logger.info("%s: trained for other classes; the last layer of the class subnet starts untrained", source)
    kept = {name: value for name, value in state.items() if name not in fresh}
    wrong = [name for name in own if name not in fresh and (name not in kept or kept[name].shape != own[name].shape)]
    if wrong:
        raise UserError(f"model.weights: {source}: no {wrong[0]} of shape {tuple(own[wrong[0]].shape)} in it")
    model.load_state_dict(kept, strict=False)
