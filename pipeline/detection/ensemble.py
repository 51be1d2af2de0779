"""Several networks as one model: the means of their outputs, or their boxes fused."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from pipeline.detection.anchors import Anchors
from pipeline.detection.postprocess import Detections, fused, joined, reduced, separate
from pipeline.detection.retinanet import HeadOutputs, RetinaNet
from pipeline.detection.settings import PostProcessing
from pipeline.detection.suppression import ABSENT, Candidates

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


def fuse(looks: Sequence[Candidates], fusion_thresh: float, post_processing: PostProcessing) -> Candidates:
    """Fuse the detections of several looks at the same images, fetched once; suppress and shrink what comes out.

    A finding's score is the mean of its scores over all looks (weighted boxes fusion, Solovyev et al. 2021); looks that
    do not find it count as 0. So soft NMS drops scores below ``score_thresh`` divided by the number of looks.
    """
    together = fused(joined(looks).best_first(), fusion_thresh, len(looks))
    return reduced(together, post_processing, post_processing.score_thresh / len(looks))


def fuse_detections(
    looks: Sequence[list[Detections]], fusion_thresh: float, post_processing: PostProcessing
) -> list[Detections]:
    """Return the results of `fuse` for detections that are fetched already: for each look, those of each image."""
    return separate(fuse([_together(look) for look in looks], fusion_thresh, post_processing))


def _together(look: list[Detections]) -> Candidates:
    """Return the detections of several images as a batch, in which absent ones fill the rows up."""
    # One column at least, so that the steps that follow need no case for images in which nothing is found.
    most = max(1, *(len(one["scores"]) for one in look))
    boxes, labels = torch.zeros(len(look), most, 4), torch.zeros(len(look), most, dtype=torch.int64)
    scores = torch.full((len(look), most), ABSENT)
    for number, one in enumerate(look):
        count = len(one["scores"])
        boxes[number, :count], scores[number, :count], labels[number, :count] = (
            one["boxes"],
            one["scores"],
            one["labels"],
        )
    return Candidates(boxes, scores, labels)
