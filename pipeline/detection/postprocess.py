"""Post-processing of head outputs: the best candidates of each level, decoded, and reduced to one per object."""

from collections.abc import Sequence
from typing import assert_never

import torch
from torch import Tensor
from torchvision.ops import clip_boxes_to_image

from pipeline.detection.anchors import Anchors, decode_boxes
from pipeline.detection.retinanet import HeadOutputs
from pipeline.detection.settings import PostProcessing
from pipeline.detection.suppression import ABSENT, Candidates, nms, soft_nms, weighted_boxes_fusion

# Those of one image, on the CPU: ``boxes`` float32 ``[N, 4]`` xyxy, ``scores`` ``[N]``, ``labels`` int64 ``[N]``.
Detections = dict[str, Tensor]
# Weight of the probability of another finding in the score of an opacity (RSNA challenge, second place).
_OTHER_FINDING_SHARE = 0.1


def post_process(
    outputs: HeadOutputs,
    anchors: Anchors,
    image_size: tuple[int, int],
    post_processing: PostProcessing,
    mirrored: HeadOutputs | None = None,
) -> Candidates:
    """Return the detections of a batch of images, at most ``detections_per_img`` of each, best first.

    Nothing here waits for the device, but for ``weighted_fusion``, which fetches the candidates. See `separate`.

    Args:
        outputs: outputs of the model.
        anchors: anchors in the order of the outputs.
        image_size: height, width; boxes are clipped to it.
        post_processing: thresholds and counts.
        mirrored: outputs for the mirrored images, as a second view.
    """
    views = [_candidates(outputs, anchors, image_size, post_processing)]
    if mirrored is not None:
        other = _candidates(mirrored, anchors, image_size, post_processing)
        views.append(other._replace(boxes=mirror(other.boxes, image_size[1])))
    candidates = joined(views).best_first()
    if post_processing.suppression == "weighted_fusion":
        candidates = fused(candidates, post_processing.nms_thresh, len(views))
    return reduced(candidates, post_processing, post_processing.score_thresh)


def _candidates(
    outputs: HeadOutputs, anchors: Anchors, image_size: tuple[int, int], post_processing: PostProcessing
) -> Candidates:
    """Return the best candidates of every level, absent where their score is too low or they lie outside the image."""
    sizes = [len(level) for level in anchors.levels]
    levels = zip(anchors.levels, outputs.logits.split(sizes, 1), outputs.deltas.split(sizes, 1), strict=True)
    boxes, scores, labels = joined([_best_of_level(*level, post_processing.topk_candidates) for level in levels])
    if post_processing.score_gate and outputs.image_class is not None:
        opacity, not_normal, _ = outputs.image_class.float().softmax(1).unbind(1)
        scores = torch.sqrt(scores * (opacity + _OTHER_FINDING_SHARE * not_normal)[:, None])
    boxes = clip_boxes_to_image(boxes, image_size)
    # A box that has no area after clipping lies outside the image.
    present = (scores > post_processing.score_thresh) & ((boxes[..., 2:] - boxes[..., :2]) > 0).all(-1)
    return Candidates(boxes, torch.where(present, scores, ABSENT), labels)


def _best_of_level(anchors: Tensor, logits: Tensor, deltas: Tensor, count: int) -> Candidates:
    classes = logits.shape[2]
    best, flat = logits.flatten(1).topk(min(count, logits.shape[1] * classes), 1)  # (B, count)
    rows = flat // classes
    offsets = deltas.gather(1, rows[..., None].expand(-1, -1, 4)).float()
    return Candidates(decode_boxes(offsets, anchors[rows]), best.float().sigmoid(), flat % classes)


def joined(parts: Sequence[Candidates]) -> Candidates:
    """Return the candidates of all ``parts``, image by image."""
    return Candidates(*(torch.cat(columns, 1) for columns in zip(*parts, strict=True)))


def mirror(boxes: Tensor, width: int) -> Tensor:
    """Return boxes ``[..., 4]`` xyxy in images of ``width`` pixels as they lie in the mirror images."""
    x0, y0, x1, y1 = boxes.unbind(-1)
    return torch.stack([width - x1, y0, width - x0, y1], -1)


def fused(candidates: Candidates, iou_thresh: float, views: int) -> Candidates:
    """Fuse the boxes of several views on the CPU, where a step for each candidate costs least.

    Args:
        candidates: best first.
        iou_thresh: IoU above which boxes are one finding.
        views: number of views; see `weighted_boxes_fusion`.
    """
    fetched = Candidates(*(part.cpu() for part in candidates))
    return weighted_boxes_fusion(fetched.without_absent_columns(), iou_thresh, views)


def reduced(candidates: Candidates, post_processing: PostProcessing, score_thresh: float) -> Candidates:
    """Suppress overlapping candidates, to at most ``detections_per_img``, and shrink those that are left.

    Args:
        candidates: best first; with ``weighted_fusion`` they are fused already, and only their number is limited.
        post_processing: the configuration.
        score_thresh: soft NMS drops boxes whose lowered score is not above it.
    """
    count = post_processing.detections_per_img
    match post_processing.suppression:
        case "nms":
            found = nms(candidates, post_processing.nms_thresh, count)
        case "soft_nms":
            found = soft_nms(candidates, post_processing.soft_nms_sigma, score_thresh, count)
        case "weighted_fusion":
            found = candidates.first(count)
        case never:
            assert_never(never)
    return found._replace(boxes=shrink(found.boxes, post_processing.box_shrink))


def shrink(boxes: Tensor, share: float) -> Tensor:
    """Shrink boxes ``[..., 4]`` xyxy about their centres by ``share`` of their width and height."""
    if not share:
        return boxes
    margin = (boxes[..., 2:] - boxes[..., :2]) * (share / 2)
    return torch.cat([boxes[..., :2] + margin, boxes[..., 2:] - margin], -1)


def separate(found: Candidates) -> list[Detections]:
    """Fetch the detections of a batch, all at once, and return those of each image."""
    packed = torch.cat([found.boxes, found.scores[..., None], found.labels[..., None].float()], -1).cpu()
    images = [image[image[:, 4] != ABSENT] for image in packed]
    return [{"boxes": one[:, :4], "scores": one[:, 4], "labels": one[:, 5].long()} for one in images]
