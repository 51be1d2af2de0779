"""Post-processing of head outputs: the best candidates of each level, decoded, and reduced to one per object."""

from dataclasses import dataclass

import torch
from pydantic import with_config
from torch import Tensor
from torchvision.ops import clip_boxes_to_image

from pipeline.bounds import (
    CHECKED,
    BoxShrink,
    DetectionsPerImage,
    Fraction,
    OpenFraction,
    SoftNmsSigma,
    Suppression,
    TopCandidates,
)
from pipeline.detection.anchors import Anchors, decode_boxes
from pipeline.detection.retinanet import HeadOutputs, RetinaNet
from pipeline.detection.suppression import Candidates, non_maximum, soft_non_maximum, weighted_fusion

Detections = dict[str, Tensor]
# Weight of the probability of another finding in the score of an opacity (RSNA challenge, second place).
_OTHER_FINDING_SHARE = 0.1


@with_config(CHECKED)
@dataclass(frozen=True)
class PostProcessing:
    """Rules by which candidates become detections; the names are torchvision's where it has one.

    Attributes:
        score_thresh: candidates with a higher score are considered.
        nms_thresh: largest IoU of two detections; with ``weighted_fusion``, above it a box joins a cluster.
        detections_per_img: largest number of detections of an image.
        topk_candidates: largest number of candidates of each pyramid level.
        suppression: ``nms``, ``soft_nms`` or ``weighted_fusion``.
        soft_nms_sigma: the larger, the less an overlap costs.
        flip: whether to run the model on the mirrored image too.
        box_shrink: share of its width and height that each box loses.
        score_gate: whether the image-level head changes the scores: a score becomes
            ``sqrt(score (p_opacity + .1 p_not_normal))``.
    """

    score_thresh: Fraction
    nms_thresh: OpenFraction
    detections_per_img: DetectionsPerImage
    topk_candidates: TopCandidates
    suppression: Suppression = "nms"
    soft_nms_sigma: SoftNmsSigma = 0.5
    flip: bool = False
    box_shrink: BoxShrink = 0.0
    score_gate: bool = False


class NotFiniteError(ValueError):
    """An error for outputs with a NaN or an infinity: a NaN passes no threshold, and must not read as "nothing found".

    Attributes:
        places: positions of the images in their batch.
    """

    def __init__(self, places: list[int]) -> None:
        super().__init__("the outputs of the model are not finite")
        self.places = places


def find(model: RetinaNet, images: Tensor, rules: PostProcessing) -> list[Detections]:
    """Return the detections of a batch of images ``[B, C, H, W]``; see `detect`.

    Raises:
        NotFiniteError: an output is not finite.
    """
    size = (images.shape[-2], images.shape[-1])
    mirrored = model(images.flip(3)) if rules.flip else None
    outputs = model(images)
    _require_finite([outputs] if mirrored is None else [outputs, mirrored])
    return detect(outputs, model.anchors_for(images), size, rules, mirrored)


def _require_finite(views: list[HeadOutputs]) -> None:
    parts = [part for one in views for part in (one.logits, one.deltas, one.image_class) if part is not None]
    sound = torch.stack([part.isfinite().flatten(1).all(1) for part in parts]).all(0)  # (B,)
    if not sound.all():
        raise NotFiniteError((~sound).nonzero().flatten().tolist())


def detect(
    outputs: HeadOutputs,
    anchors: Anchors,
    image_size: tuple[int, int],
    rules: PostProcessing,
    mirrored: HeadOutputs | None = None,
) -> list[Detections]:
    """Return the detections of each image of a batch, best first.

    Args:
        outputs: outputs of the model.
        anchors: anchors in the order of the outputs.
        image_size: height, width; boxes are clipped to it.
        rules: thresholds and counts.
        mirrored: outputs for the mirrored images, as a second view.

    Returns:
        Per image ``boxes`` float32 ``[N, 4]`` xyxy, ``scores`` ``[N]``, ``labels`` ``[N]``.
    """
    views = [_candidates(outputs, anchors, image_size, rules)]
    if mirrored is not None:
        boxes, scores, labels = _candidates(mirrored, anchors, image_size, rules)
        x0, y0, x1, y1 = boxes.unbind(-1)
        views.append((torch.stack([image_size[1] - x1, y0, image_size[1] - x0, y1], -1), scores, labels))
    boxes, scores, labels = (torch.cat(parts, 1) for parts in zip(*views, strict=True))
    return [_one_each(*image, rules, len(views)) for image in zip(boxes, scores, labels, strict=True)]


def _candidates(
    outputs: HeadOutputs, anchors: Anchors, image_size: tuple[int, int], rules: PostProcessing
) -> Candidates:
    """Return the best candidates of every level, ``[B, N, ...]``."""
    sizes = [len(level) for level in anchors.levels]
    levels = zip(anchors.levels, outputs.logits.split(sizes, 1), outputs.deltas.split(sizes, 1), strict=True)
    picked = [_best_of_level(*level, rules.topk_candidates) for level in levels]
    boxes, scores, labels = (torch.cat(parts, 1) for parts in zip(*picked, strict=True))
    if rules.score_gate and outputs.image_class is not None:
        opacity, not_normal, _ = outputs.image_class.float().softmax(1).unbind(1)
        scores = torch.sqrt(scores * (opacity + _OTHER_FINDING_SHARE * not_normal)[:, None])
    return clip_boxes_to_image(boxes, image_size), scores, labels


def _best_of_level(anchors: Tensor, logits: Tensor, deltas: Tensor, count: int) -> Candidates:
    classes = logits.shape[2]
    best, flat = logits.flatten(1).topk(min(count, logits[0].numel()), 1)  # (B, count)
    rows = flat // classes
    offsets = deltas.gather(1, rows[..., None].expand(-1, -1, 4)).float()
    return decode_boxes(offsets, anchors[rows]), best.float().sigmoid(), flat % classes


def _one_each(boxes: Tensor, scores: Tensor, labels: Tensor, rules: PostProcessing, views: int) -> Detections:
    # A box that has no area after clipping lies outside the image.
    keep = (scores > rules.score_thresh) & ((boxes[:, 2:] - boxes[:, :2]) > 0).all(1)
    scores, order = scores[keep].sort(descending=True, stable=True)
    boxes, labels = boxes[keep][order], labels[keep][order]
    match rules.suppression:
        case "nms":
            found = non_maximum(boxes, scores, labels, rules.nms_thresh, rules.detections_per_img)
        case "soft_nms":
            found = soft_non_maximum(
                boxes, scores, labels, rules.soft_nms_sigma, rules.score_thresh, rules.detections_per_img
            )
        case "weighted_fusion":
            found = weighted_fusion(boxes, scores, labels, rules.nms_thresh, views, rules.detections_per_img)
        case _:
            raise ValueError(f"Invalid suppression: {rules.suppression!r}")
    return {"boxes": shrink(found[0], rules.box_shrink), "scores": found[1], "labels": found[2]}


def shrink(boxes: Tensor, share: float) -> Tensor:
    """Shrink boxes ``[N, 4]`` xyxy about their centres by ``share`` of their width and height."""
    margin = (boxes[:, 2:] - boxes[:, :2]) * (share / 2)
    return torch.cat([boxes[:, :2] + margin, boxes[:, 2:] - margin], 1)
