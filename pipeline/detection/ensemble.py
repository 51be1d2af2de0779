"""Several networks as one model: the means of their outputs, or their boxes fused."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from pipeline.detection.anchors import Anchors
from pipeline.detection.postprocess import Detections, shrink, suppress
from pipeline.detection.retinanet import HeadOutputs, RetinaNet
from pipeline.detection.settings import PostProcessing
from pipeline.detection.suppression import weighted_boxes_fusion

# Largest IoU of two boxes of one look that are fused with those of others: usual before weighted boxes fusion, where a
# look that names one finding twice would count twice.
LOOK_NMS_THRESH = 0.5
_EPS = 1e-7  # probabilities of 0 and 1 have no finite logit


class Ensemble(nn.Module):
    """Networks of one architecture.

    With ``fusion_thresh`` None they are one detector whose outputs at each anchor are the means of theirs, see
    `average`. Otherwise it is the IoU above which boxes of different networks count as one finding, see `fuse`.
    """

    def __init__(self, members: Sequence[RetinaNet], fusion_thresh: float | None) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.fusion_thresh = fusion_thresh

    def forward(self, images: Tensor) -> HeadOutputs:
        """Return the means of the members' outputs for images ``[B, C, H, W]``."""
        return average([member(images) for member in self.members])

    def anchors_for(self, images: Tensor) -> Anchors:
        """Return the anchors, which all members share."""
        member = self.members[0]
        assert isinstance(member, RetinaNet)
        return member.anchors_for(images)


def average(outputs: Sequence[HeadOutputs]) -> HeadOutputs:
    """Return the mean of several networks' outputs for the same images and anchors, as float32.

    ``logits`` are those of the mean probabilities; ``deltas`` are means weighted by each network's highest class
    probability at the anchor; ``image_class`` are logarithms of the mean probabilities. There is no ``mask``.
    """
    probabilities = torch.stack([one.logits.float().sigmoid() for one in outputs])  # (members, B, A, K)
    weights = probabilities.amax(3, keepdim=True).clamp(min=_EPS)
    deltas = torch.stack([one.deltas.float() for one in outputs])
    classes = [one.image_class.float().softmax(1) for one in outputs if one.image_class is not None]
    return HeadOutputs(
        probabilities.mean(0).clamp(_EPS, 1 - _EPS).logit(),
        (deltas * weights).sum(0) / weights.sum(0),
        image_class=torch.stack(classes).mean(0).clamp(min=_EPS).log() if classes else None,
    )


def one_look(post_processing: PostProcessing) -> PostProcessing:
    """Return the post-processing of a network's look at an image before its boxes are fused with those of others."""
    return replace(post_processing, suppression="nms", nms_thresh=LOOK_NMS_THRESH, box_shrink=0.0, flip=False)


def fuse(looks: Sequence[list[Detections]], fusion_thresh: float, post_processing: PostProcessing) -> list[Detections]:
    """Fuse the detections of several looks at the same images; suppress and shrink what comes out.

    A finding's score is the mean of its scores over all looks (weighted boxes fusion, Solovyev et al. 2021); looks that
    do not find it count as 0. So soft NMS drops scores below ``score_thresh`` divided by the number of looks.
    """
    return [_fused(found, fusion_thresh, post_processing) for found in zip(*looks, strict=True)]


def _fused(found: Sequence[Detections], fusion_thresh: float, post_processing: PostProcessing) -> Detections:
    scores, order = torch.cat([one["scores"] for one in found]).sort(descending=True, stable=True)
    boxes, labels = (torch.cat([one[name] for one in found])[order] for name in ("boxes", "labels"))
    fused = weighted_boxes_fusion(boxes, scores, labels, fusion_thresh, len(found), len(scores))
    boxes, scores, labels = suppress(fused, post_processing, post_processing.score_thresh / len(found))
    return {"boxes": shrink(boxes, post_processing.box_shrink), "scores": scores, "labels": labels}
