"""Post-processing of head outputs: the best candidates of each level, decoded, and reduced to one per object."""

from typing import assert_never

import torch
from torch import Tensor
from torchvision.ops import clip_boxes_to_image

from pipeline.detection.anchors import Anchors, decode_boxes
from pipeline.detection.retinanet import HeadOutputs
from pipeline.detection.settings import PostProcessing
from pipeline.detection.suppression import Candidates, nms, soft_nms, weighted_boxes_fusion

Detections = dict[str, Tensor]
# Weight of the probability of another finding in the score of an opacity (RSNA challenge, second place).
_OTHER_FINDING_SHARE = 0.1


def post_process(
    outputs: HeadOutputs,
    anchors: Anchors,
    image_size: tuple[int, int],
    post_processing: PostProcessing,
    mirrored: HeadOutputs | None = None,
) -> list[Detections]:
    """Return the detections of each image of a batch, best first.

    Args:
        outputs: outputs of the model.
        anchors: anchors in the order of the outputs.
        image_size: height, width; boxes are clipped to it.
        post_processing: thresholds and counts.
        mirrored: outputs for the mirrored images, as a second view.

    Returns:
        Per image ``boxes`` float32 ``[N, 4]`` xyxy, ``scores`` ``[N]``, ``labels`` ``[N]``.
    """
    views = [_candidates(outputs, anchors, image_size, post_processing)]
    if mirrored is not None:
        boxes, scores, labels = _candidates(mirrored, anchors, image_size, post_processing)
        x0, y0, x1, y1 = boxes.unbind(-1)
        views.append((torch.stack([image_size[1] - x1, y0, image_size[1] - x0, y1], -1), scores, labels))
    boxes, scores, labels = (torch.cat(parts, 1) for parts in zip(*views, strict=True))
    return [_one_each(*image, post_processing, len(views)) for image in zip(boxes, scores, labels, strict=True)]


def _candidates(
    outputs: HeadOutputs, anchors: Anchors, image_size: tuple[int, int], post_processing: PostProcessing
) -> Candidates:
    """Return the best candidates of every level, ``[B, N, ...]``."""
    sizes = [len(level) for level in anchors.levels]
    levels = zip(anchors.levels, outputs.logits.split(sizes, 1), outputs.deltas.split(sizes, 1), strict=True)
    picked = [_best_of_level(*level, post_processing.topk_candidates) for level in levels]
    boxes, scores, labels = (torch.cat(parts, 1) for parts in zip(*picked, strict=True))
    if post_processing.score_gate and outputs.image_class is not None:
        opacity, not_normal, _ = outputs.image_class.float().softmax(1).unbind(1)
        scores = torch.sqrt(scores * (opacity + _OTHER_FINDING_SHARE * not_normal)[:, None])
    return clip_boxes_to_image(boxes, image_size), scores, labels


def _best_of_level(anchors: Tensor, logits: Tensor, deltas: Tensor, count: int) -> Candidates:
    classes = logits.shape[2]
    best, flat = logits.flatten(1).topk(min(count, logits[0].numel()), 1)  # (B, count)
    rows = flat // classes
    offsets = deltas.gather(1, rows[..., None].expand(-1, -1, 4)).float()
    return decode_boxes(offsets, anchors[rows]), best.float().sigmoid(), flat % classes


def _one_each(boxes: Tensor, scores: Tensor, labels: Tensor, post_processing: PostProcessing, views: int) -> Detections:
    # A box that has no area after clipping lies outside the image.
    keep = (scores > post_processing.score_thresh) & ((boxes[:, 2:] - boxes[:, :2]) > 0).all(1)
    scores, order = scores[keep].sort(descending=True, stable=True)
    candidates = boxes[keep][order], scores, labels[keep][order]
    if post_processing.suppression == "weighted_fusion":
        kept = weighted_boxes_fusion(*candidates, post_processing.nms_thresh, views, post_processing.detections_per_img)
    else:
        kept = suppress(candidates, post_processing, post_processing.score_thresh)
    return {"boxes": shrink(kept[0], post_processing.box_shrink), "scores": kept[1], "labels": kept[2]}


def suppress(candidates: Candidates, post_processing: PostProcessing, score_thresh: float) -> Candidates:
    """Reduce overlapping candidates by NMS or soft NMS, as configured, to at most ``detections_per_img``.

    Args:
        candidates: ``boxes`` ``[N, 4]`` xyxy, ``scores`` ``[N]``, ``labels`` ``[N]``, best first.
        post_processing: with ``weighted_fusion``, the candidates are fused already, and only their number is limited.
        score_thresh: soft NMS drops boxes whose lowered score is not above it.
    """
    count = post_processing.detections_per_img
    match post_processing.suppression:
        case "nms":
            return nms(*candidates, post_processing.nms_thresh, count)
        case "soft_nms":
            return soft_nms(*candidates, post_processing.soft_nms_sigma, score_thresh, count)
        case "weighted_fusion":
            boxes, scores, labels = candidates
            return boxes[:count], scores[:count], labels[:count]
        case never:
            assert_never(never)


def shrink(boxes: Tensor, share: float) -> Tensor:
    """Shrink boxes ``[N, 4]`` xyxy about their centres by ``share`` of their width and height."""
    margin = (boxes[:, 2:] - boxes[:, :2]) * (share / 2)
    return torch.cat([boxes[:, :2] + margin, boxes[:, 2:] - margin], 1)
