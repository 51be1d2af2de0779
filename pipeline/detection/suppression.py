"""Ways to reduce several candidates for the same object to one detection, class by class.

Each function takes candidates in descending order of their scores (``boxes`` ``[N, 4]`` xyxy, ``scores``
``[N]``, ``labels`` ``[N]``) and returns at most ``count`` detections in the same form and order.
"""

import torch
from torch import Tensor
from torchvision.ops import batched_nms, box_iou

Candidates = tuple[Tensor, Tensor, Tensor]


def nms(boxes: Tensor, scores: Tensor, labels: Tensor, nms_thresh: float, count: int) -> Candidates:
    """Drop boxes that overlap a better box by more than ``nms_thresh``.

    The result of non-maximum suppression for the best boxes does not depend on the rest, and its cost
    grows with the square of their number, so the best few are tried first.
    """
    tried = 2 * count
    while True:
        kept = batched_nms(boxes[:tried], scores[:tried], labels[:tried], nms_thresh)
        if len(kept) >= count or tried >= len(boxes):
            kept = kept[:count]
            return boxes[kept], scores[kept], labels[kept]
        tried *= 3


def soft_nms(
    boxes: Tensor, scores: Tensor, labels: Tensor, sigma: float, score_thresh: float, count: int
) -> Candidates:
    """Multiply the scores of boxes that overlap a better one by ``exp(-IoU^2 / sigma)`` (Bodla et al. 2017, Gaussian).

    Boxes whose score falls to ``score_thresh`` or below are dropped.
    """
    overlap = _same_class_iou(boxes, labels)
    left = scores.clone()
    picked: list[int] = []
    final: list[Tensor] = []
    while len(picked) < min(count, len(boxes)):
        best = int(left.argmax())
        if left[best] <= score_thresh:
            break
        picked.append(best)
        final.append(left[best].clone())
        left = left * torch.exp(-overlap[best].square() / sigma)
        left[picked] = -1.0
    chosen = torch.tensor(picked, dtype=torch.long, device=boxes.device)
    return boxes[chosen], torch.stack(final) if final else scores[:0], labels[chosen]


def weighted_boxes_fusion(
    boxes: Tensor, scores: Tensor, labels: Tensor, iou_thresh: float, views: int, count: int
) -> Candidates:
    """Fuse each cluster's boxes into their score-weighted mean: weighted box fusion (Solovyev et al. 2021).

    A candidate joins the cluster whose mean box it overlaps most, if by more than ``iou_thresh``. A
    cluster's score is the mean of its candidates' scores, times the share of the ``views`` (the image
    and its mirror image, by one or more models) that could have contributed.
    """
    clusters: list[list[int]] = []
    means, kinds = boxes[:0], labels[:0]
    for candidate in range(len(boxes)):
        overlap = box_iou(boxes[candidate : candidate + 1], means)[0].where(kinds == labels[candidate], -1.0)
        number = int(overlap.argmax()) if clusters else -1
        if clusters and overlap[number] > iou_thresh:
            clusters[number].append(candidate)
            means[number] = _mean_box(boxes, scores, clusters[number])
        else:
            clusters.append([candidate])
            means = torch.cat([means, boxes[candidate : candidate + 1]])
            kinds = torch.cat([kinds, labels[candidate : candidate + 1]])
    if not clusters:
        return boxes, scores, labels
    fused = torch.stack([scores[cluster].mean() * min(len(cluster), views) / views for cluster in clusters])
    order = fused.argsort(descending=True, stable=True)[:count]
    return means[order], fused[order], kinds[order]


def _mean_box(boxes: Tensor, scores: Tensor, cluster: list[int]) -> Tensor:
    weights = scores[cluster][:, None]
    return (boxes[cluster] * weights).sum(0) / weights.sum()


def _same_class_iou(boxes: Tensor, labels: Tensor) -> Tensor:
    return torch.where(labels[:, None] == labels[None, :], box_iou(boxes, boxes), 0.0)
