"""Detections of a batch of images, by one network or by several together."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from pipeline.detection.postprocess import Detections, post_process, shrink
from pipeline.detection.retinanet import HeadOutputs, RetinaNet
from pipeline.detection.settings import PostProcessing
from pipeline.detection.suppression import weighted_boxes_fusion


class NotFiniteError(ValueError):
    """An error for outputs with a NaN or an infinity: a NaN passes no threshold, and must not read as "nothing found".

    Attributes:
        indices: positions of the images in their batch.
    """

    def __init__(self, indices: list[int]) -> None:
        super().__init__("the outputs of the model are not finite")
        self.indices = indices


class Ensemble(nn.Module):
    """Several networks whose detections are fused (weighted boxes fusion, Solovyev et al. 2021).

    ``fusion_thresh`` is the IoU above which boxes of different networks count as one finding.
    """

    def __init__(self, members: Sequence[RetinaNet], fusion_thresh: float) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.fusion_thresh = fusion_thresh


Detector = RetinaNet | Ensemble


def detect(model: Detector, images: Tensor, post_processing: PostProcessing) -> list[Detections]:
    """Return the detections of a batch of images ``[B, C, H, W]``; see `post_process`.

    A single network looks at the image and, with ``flip``, at its mirror image, and all candidates of both go through
    one suppression. In an ensemble, each look of each member is post-processed alone, and then all are fused.

    Raises:
        NotFiniteError: an output is not finite.
    """
    if isinstance(model, Ensemble):
        looks = [one for member in model.members for one in _looks(member, images, post_processing)]
        return fuse(looks, model.fusion_thresh, post_processing)
    outputs, mirrored = _outputs(model, images, post_processing.flip)
    return post_process(outputs, model.anchors_for(images), _size(images), post_processing, mirrored)


def fuse(looks: Sequence[list[Detections]], fusion_thresh: float, post_processing: PostProcessing) -> list[Detections]:
    """Fuse the detections of several looks at the same images, each before any box shrink; shrink the result.

    A finding's score is the mean of its scores over all looks; looks that do not find it count as 0.
    """
    return [_fused(found, fusion_thresh, post_processing) for found in zip(*looks, strict=True)]


def _fused(found: Sequence[Detections], fusion_thresh: float, post_processing: PostProcessing) -> Detections:
    scores, order = torch.cat([one["scores"] for one in found]).sort(descending=True, stable=True)
    boxes, labels = (torch.cat([one[name] for one in found])[order] for name in ("boxes", "labels"))
    count = post_processing.detections_per_img
    boxes, scores, labels = weighted_boxes_fusion(boxes, scores, labels, fusion_thresh, len(found), count)
    return {"boxes": shrink(boxes, post_processing.box_shrink), "scores": scores, "labels": labels}


def _looks(member: nn.Module, images: Tensor, post_processing: PostProcessing) -> list[list[Detections]]:
    """Return a member's detections in the images and, with ``flip``, in their mirror images."""
    assert isinstance(member, RetinaNet)
    alone = replace(post_processing, box_shrink=0.0, flip=False)
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


def _outputs(model: RetinaNet, images: Tensor, flip: bool) -> tuple[HeadOutputs, HeadOutputs | None]:
    mirrored = model(images.flip(3)) if flip else None
    outputs = model(images)
    _require_finite([outputs] if mirrored is None else [outputs, mirrored])
    return outputs, mirrored


def _require_finite(views: list[HeadOutputs]) -> None:
    parts = [part for one in views for part in (one.logits, one.deltas, one.image_class) if part is not None]
    sound = torch.stack([part.isfinite().flatten(1).all(1) for part in parts]).all(0)  # (B,)
    if not sound.all():
        raise NotFiniteError((~sound).nonzero().flatten().tolist())


def _size(images: Tensor) -> tuple[int, int]:
    return images.shape[-2], images.shape[-1]
