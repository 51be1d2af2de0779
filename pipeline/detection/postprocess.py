"""Head outputs -> detections: the best candidates of each level, decoded, and NMS."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.ops import batched_nms, clip_boxes_to_image

from pipeline.detection.anchors import Anchors, decode_boxes
from pipeline.detection.retinanet import HeadOutputs

Detections = dict[str, Tensor]


@dataclass(frozen=True)
class PostProcessing:
    """What counts as a detection; the names are torchvision's."""

    score_thresh: float
    nms_thresh: float
    detections_per_img: int
    topk_candidates: int


def detect(
    outputs: HeadOutputs, anchors: Anchors, image_size: tuple[int, int], rules: PostProcessing
) -> list[Detections]:
    """Detections of each image of a batch, best first.

    Args:
        outputs: logits ``[B, A, K]`` and deltas ``[B, A, 4]`` over all levels.
        anchors: in the order of the outputs.
        image_size: height, width; boxes are clipped to it.
        rules: thresholds and counts.

    Returns:
        Per image ``boxes`` float32 ``[N, 4]`` xyxy, ``scores`` ``[N]``, ``labels`` ``[N]``.
    """
    sizes = [len(level) for level in anchors.levels]
    picked = []
    for level, logits, deltas in zip(
        anchors.levels, outputs.logits.split(sizes, 1), outputs.deltas.split(sizes, 1), strict=True
    ):
        picked.append(_best_of_level(level, logits, deltas, rules.topk_candidates))
    boxes, scores, labels = (torch.cat(parts, 1) for parts in zip(*picked, strict=True))
    boxes = clip_boxes_to_image(boxes, image_size)
    return [_suppress(*image, rules) for image in zip(boxes, scores, labels, strict=True)]


def _best_of_level(anchors: Tensor, logits: Tensor, deltas: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    classes = logits.shape[2]
    best, flat = logits.flatten(1).topk(min(count, logits[0].numel()), 1)  # (B, count)
    rows = flat // classes
    offsets = deltas.gather(1, rows[..., None].expand(-1, -1, 4)).float()
    return decode_boxes(offsets, anchors[rows]), best.float().sigmoid(), flat % classes


def _suppress(boxes: Tensor, scores: Tensor, labels: Tensor, rules: PostProcessing) -> Detections:
    # A box that was clipped to nothing lies outside the image.
    keep = (scores > rules.score_thresh) & ((boxes[:, 2:] - boxes[:, :2]) > 0).all(1)
    scores, order = scores[keep].sort(descending=True, stable=True)
    boxes, labels = boxes[keep][order], labels[keep][order]
    kept = _non_maximum(boxes, scores, labels, rules.nms_thresh, rules.detections_per_img)
    return {"boxes": boxes[kept], "scores": scores[kept], "labels": labels[kept]}


def _non_maximum(boxes: Tensor, scores: Tensor, labels: Tensor, nms_thresh: float, count: int) -> Tensor:
    """The first ``count`` of what NMS keeps of boxes in order of their scores.

    What NMS keeps of the best boxes does not depend on the rest, and its cost grows with the square
    of their number: so the best few are tried first.
    """
    tried = 2 * count
    while True:
        kept = batched_nms(boxes[:tried], scores[:tried], labels[:tried], nms_thresh)
        if len(kept) >= count or tried >= len(boxes):
            return kept[:count]
        tried *= 3
