"""Detections of a batch of images, by one network or by several together."""

import torch
from torch import Tensor, nn

from pipeline.detection.ensemble import Ensemble, average, fuse, one_look
from pipeline.detection.postprocess import Detections, post_process
from pipeline.detection.retinanet import HeadOutputs, RetinaNet
from pipeline.detection.settings import PostProcessing


class NotFiniteError(ValueError):
    """An error for outputs with a NaN or an infinity: a NaN passes no threshold, and must not read as "nothing found".

    Attributes:
        indices: positions of the images in their batch.
    """

    def __init__(self, indices: list[int]) -> None:
        super().__init__("the outputs of the model are not finite")
        self.indices = indices


Detector = RetinaNet | Ensemble


def detect(model: Detector, images: Tensor, post_processing: PostProcessing) -> list[Detections]:
    """Return the detections of a batch of images ``[B, C, H, W]``; see `post_process`.

    A network, or an ensemble that averages, looks at the image and, with ``flip``, at its mirror image, and all
    candidates of both go through one suppression. In an ensemble that fuses boxes, each look of each member is
    post-processed alone, and then all are fused.

    Raises:
        NotFiniteError: an output is not finite.
    """
    if isinstance(model, Ensemble) and model.fusion_thresh is not None:
        looks = [one for member in model.members for one in _looks(member, images, post_processing)]
        return fuse(looks, model.fusion_thresh, post_processing)
    outputs, mirrored = _outputs(model, images, post_processing.flip)
    return post_process(outputs, model.anchors_for(images), _size(images), post_processing, mirrored)


def _looks(member: nn.Module, images: Tensor, post_processing: PostProcessing) -> list[list[Detections]]:
    """Return a member's detections in the images and, with ``flip``, in their mirror images."""
    assert isinstance(member, RetinaNet)
    alone = one_look(post_processing)
    anchors, size = member.anchors_for(images), _size(images)
    outputs, mirrored = _outputs(member, images, post_processing.flip)
    looks = [post_process(outputs, anchors, size, alone)]
    if mirrored is not None:
        looks.append([mirror(one, size[1]) for one in post_process(mirrored, anchors, size, alone)])
    return looks


def mirror(found: Detections, width: int) -> Detections:
    """Return detections in an image of ``width`` pixels as they lie in its mirror image."""
    x0, y0, x1, y1 = found["boxes"].unbind(-1)
    return {**found, "boxes": torch.stack([width - x1, y0, width - x0, y1], -1)}


def _outputs(model: Detector, images: Tensor, flip: bool) -> tuple[HeadOutputs, HeadOutputs | None]:
    networks = [*model.members] if isinstance(model, Ensemble) else [model]
    views = [images, images.flip(3)] if flip else [images]
    outputs = [[network(view) for network in networks] for view in views]
    # Before the mean, in which a NaN would stay one but an infinity may not.
    _require_finite([one for view in outputs for one in view])
    seen = [average(view) if isinstance(model, Ensemble) else view[0] for view in outputs]
    return seen[0], seen[1] if flip else None


def _require_finite(views: list[HeadOutputs]) -> None:
    parts = [part for one in views for part in (one.logits, one.deltas, one.image_class) if part is not None]
    sound = torch.stack([part.isfinite().flatten(1).all(1) for part in parts]).all(0)  # (B,)
    if not sound.all():
        raise NotFiniteError((~sound).nonzero().flatten().tolist())


def _size(images: Tensor) -> tuple[int, int]:
    return images.shape[-2], images.shape[-1]
