"""Ways to reduce several candidates for the same object to one detection, class by class, for a batch at once.

No shape depends on the data, so that nothing waits for a GPU and a graph can hold each step. Each function takes
`Candidates` in descending order of their scores, and returns detections in that order, at most ``count`` of an image.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch._higher_order_ops.while_loop import while_loop
from torch.nn.utils.rnn import pad_sequence
from torchvision.ops import batched_nms

Floats = npt.NDArray[np.float32]
ABSENT = -1.0
_EPS = 1e-9  # square pixels
# Up to so many candidates, of the batch or of each image, the IoUs of all pairs are computed at once: a CPU has a cost
# for each number, whereas a GPU has one for each operation.
_MOST_PAIRED_ON_CPU, _MOST_PAIRED = 300, 1500
# An exported graph may run on either: pairs save it nothing if it only takes a few of many candidates.
_PAIRED_PER_DETECTION = 10


class Candidates(NamedTuple):
    """Boxes of a batch of images: ``boxes`` ``[B, N, 4]`` xyxy, ``scores`` ``[B, N]``, ``labels`` int64 ``[B, N]``.

    An image with fewer than N boxes has rows with the score `ABSENT` in their place.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor

    def rows(self, numbers: Tensor) -> "Candidates":
        """Return the rows ``numbers`` ``[B, M]`` of each image."""
        boxes = self.boxes.gather(1, numbers[..., None].expand(-1, -1, 4))
        return Candidates(boxes, self.scores.gather(1, numbers), self.labels.gather(1, numbers))

    def first(self, count: int) -> "Candidates":
        """Return the first ``count`` rows of each image."""
        return Candidates(*(part[:, :count] for part in self))

    def best_first(self) -> "Candidates":
        """Return the rows in descending order of their scores, equal scores in the order that they have here."""
        # The exporter to ONNX knows no stable sort; ONNX's own is stable.
        rule = {} if torch.compiler.is_exporting() else {"stable": True}
        return self.rows(self.scores.sort(dim=1, descending=True, **rule).indices).without_absent_columns()

    def without_absent_columns(self) -> "Candidates":
        """Drop the last columns if they are `ABSENT` in all images. The rows are best first.

        Where code may not look at scores (see `can_look_at`), all columns are kept.
        """
        if not can_look_at(self.scores):
            return self
        return self.first(max(1, int((self.scores != ABSENT).any(0).sum())))


def can_look_at(values: Tensor) -> bool:
    """Return whether code may branch on ``values``: on a GPU it would wait for them, and a graph has no branches."""
    return values.is_cpu and not torch.compiler.is_compiling()


def nms(candidates: Candidates, nms_thresh: float, count: int) -> Candidates:
    """Drop boxes that overlap a better box of their class by more than ``nms_thresh``."""
    if can_look_at(candidates.scores):
        return _nms_by_image(candidates, nms_thresh, count)
    return _greedily(candidates, lambda overlap: (overlap <= nms_thresh).to(overlap.dtype), 0.0, count)


def _nms_by_image(candidates: Candidates, nms_thresh: float, count: int) -> Candidates:
    kept = [_kept(*image, nms_thresh, count) for image in zip(*candidates, strict=True)]
    one_row = torch.zeros(1, dtype=torch.int64)  # so that there is a row even if no image has a candidate
    numbers = pad_sequence([*kept, one_row], batch_first=True, padding_value=-1)[:-1]
    found = candidates.rows(numbers.clamp(min=0))
    return found._replace(scores=found.scores.masked_fill(numbers < 0, ABSENT))


def _kept(boxes: Tensor, scores: Tensor, labels: Tensor, nms_thresh: float, count: int) -> Tensor:
    """Return the numbers of the rows of one image that NMS keeps, at most ``count``.

    The result for the best boxes does not depend on the rest, and the cost grows with the square of their number, so
    the best few are tried first.
    """
    present = int((scores != ABSENT).sum())
    tried = 2 * count
    while True:
        tried = min(tried, present)
        kept = batched_nms(boxes[:tried], scores[:tried], labels[:tried], nms_thresh)
        if len(kept) >= count or tried >= present:
            return kept[:count]
        tried *= 3


def soft_nms(candidates: Candidates, sigma: float, score_thresh: float, count: int) -> Candidates:
    """Multiply the scores of boxes that overlap a better one by ``exp(-IoU^2 / sigma)`` (Bodla et al. 2017, Gaussian).

    Boxes whose score falls to ``score_thresh`` or below are dropped.
    """
    return _greedily(candidates, lambda overlap: torch.exp(-overlap.square() / sigma), score_thresh, count)


def _greedily(candidates: Candidates, factor: Callable[[Tensor], Tensor], least: float, count: int) -> Candidates:
    """Take the best box that is left, ``count`` times; multiply the scores of the others by ``factor`` of their IoU."""
    numbers = torch.arange(candidates.scores.shape[1], device=candidates.scores.device)
    factors_of = _factors_of(candidates, factor, count)

    def step(left: Tensor) -> _Step:
        score, best = left.max(1, keepdim=True)  # (B, 1); the first of equal scores
        return best, score, torch.where(numbers == best, ABSENT, left * factors_of(best))

    repeat = _repeated_in_the_graph if torch.compiler.is_exporting() else _repeated
    taken, scores = repeat(step, candidates.scores, least, min(count, len(numbers)))
    found = candidates.rows(taken)
    return found._replace(scores=torch.where(scores > least, scores, ABSENT))


# The best row of each image ``[B, 1]``, its score ``[B, 1]``, and the scores that are left ``[B, N]``.
_Step = tuple[Tensor, Tensor, Tensor]


def _repeated(step: Callable[[Tensor], _Step], left: Tensor, least: float, steps: int) -> tuple[Tensor, Tensor]:
    """Take ``steps`` steps, or fewer if no score is left; return the rows and their scores, ``[B, steps]``."""
    taken, scores = [], []
    for number in range(steps):
        if number and can_look_at(left) and not (left > least).any():
            break
        best, score, left = step(left)
        taken.append(best)
        scores.append(score)
    return torch.cat(taken, 1), torch.cat(scores, 1)


def _repeated_in_the_graph(
    step: Callable[[Tensor], _Step], left: Tensor, least: float, steps: int
) -> tuple[Tensor, Tensor]:
    """Do what `_repeated` does, as a loop of the exported graph.

    One after another, 300 steps are a graph of thousands of nodes, with which the exporter to ONNX was not done after
    nine minutes.
    """
    places = torch.arange(steps, device=left.device)
    first = torch.zeros((), dtype=torch.int64, device=left.device)
    scores = left[:, :1].expand(-1, steps).clone().fill_(ABSENT)
    taken = torch.zeros_like(scores, dtype=torch.int64)

    def goes_on(number: Tensor, left: Tensor, _taken: Tensor, _scores: Tensor) -> Tensor:
        return (number < steps) & (left > least).any()

    def body(number: Tensor, left: Tensor, taken: Tensor, scores: Tensor) -> tuple[Tensor, ...]:
        best, score, left = step(left)
        here = places == number
        return number + 1, left, torch.where(here, best, taken), torch.where(here, score, scores)

    _, _, taken, scores = while_loop(goes_on, body, (first, left, taken, scores))
    return taken, scores


def _factors_of(candidates: Candidates, factor: Callable[[Tensor], Tensor], count: int) -> Callable[[Tensor], Tensor]:
    """Return what gives, for one row of each image ``[B, 1]``, the factors of its candidates' scores ``[B, N]``."""
    boxes, scores, labels = candidates
    area = (boxes[..., 2:] - boxes[..., :2]).prod(-1, keepdim=True)
    # Coordinate by coordinate in memory, and all in one tensor: a GPU or a graph has a cost for each operation.
    rows = torch.cat([boxes, area, labels[..., None]], -1).mT.contiguous()  # (B, 6, N)
    if not _are_paired(scores, count):
        return lambda best: factor(_same_class_iou(rows, rows.gather(2, best[:, None].expand(-1, 6, -1))))
    every = factor(_same_class_iou(rows[..., None], rows[:, :, None]))  # (B, N, N)
    return lambda best: every.gather(1, best[..., None].expand(-1, -1, scores.shape[1]))[:, 0]


def _are_paired(scores: Tensor, count: int) -> bool:
    """Return whether to compute the IoUs of all pairs of candidates, with scores ``[B, N]``, at once."""
    if can_look_at(scores):
        return scores.numel() <= _MOST_PAIRED_ON_CPU
    most = _PAIRED_PER_DETECTION * count if torch.compiler.is_exporting() else _MOST_PAIRED
    return scores.shape[1] <= min(most, _MOST_PAIRED)


def _same_class_iou(rows: Tensor, picked: Tensor) -> Tensor:
    """Return the IoU of rows ``[B, 6, ...]`` with picked ones, of a shape that broadcasts; 0 for different classes."""
    low, high = torch.maximum(rows[:, :2], picked[:, :2]), torch.minimum(rows[:, 2:4], picked[:, 2:4])
    shared = (high - low).clamp(min=0).prod(1)
    # A box without an area overlaps nothing, and 0 / 0 must not become its score.
    iou = shared / (rows[:, 4] + picked[:, 4] - shared).clamp(min=_EPS)
    return torch.where(rows[:, 5] == picked[:, 5], iou, 0.0)


def weighted_boxes_fusion(candidates: Candidates, iou_thresh: float, views: int) -> Candidates:
    """Fuse each cluster's boxes into their score-weighted mean: weighted box fusion (Solovyev et al. 2021).

    A candidate joins the cluster whose mean box it overlaps most, if by more than ``iou_thresh``. A
    cluster's score is the mean of its candidates' scores, times the share of the ``views`` (the image
    and its mirror image, by one or more models) that could have contributed.

    The candidates, and the result, are on the CPU: each candidate is a step that depends on those before it.
    """
    columns = zip(*(part.numpy() for part in candidates), strict=True)
    images = [_fused(boxes, scores, labels, iou_thresh, views) for boxes, scores, labels in columns]
    return Candidates(*(torch.from_numpy(np.stack(column)) for column in zip(*images, strict=True))).best_first()


def _fused(
    boxes: Floats, scores: Floats, labels: npt.NDArray[np.int64], iou_thresh: float, views: int
) -> tuple[Floats, Floats, npt.NDArray[np.int64]]:
    """Return the clusters of one image, in rows for N boxes; the rows that are left over are `ABSENT`.

    Args:
        boxes: ``[N, 4]`` xyxy, best first.
        scores: ``[N]``.
        labels: ``[N]``.
        iou_thresh: IoU above which a box joins a cluster.
        views: number of views; see `weighted_boxes_fusion`.
    """
    means, weighted = np.zeros_like(boxes), np.zeros_like(boxes)
    totals, sizes, kinds = np.zeros_like(scores), np.zeros_like(scores), np.zeros_like(labels)
    opened = 0
    for box, score, label in zip(boxes, scores, labels, strict=True):
        if score == ABSENT:
            break
        overlap = np.where(kinds[:opened] == label, _iou(box, means[:opened]), -1.0)
        number = int(overlap.argmax()) if opened else 0
        joins = opened > 0 and overlap[number] > iou_thresh
        if not joins:
            number, opened = opened, opened + 1
        weighted[number] += score * box
        totals[number] += score
        sizes[number] += 1
        kinds[number] = label
        means[number] = weighted[number] / totals[number] if joins else box
    found = np.full_like(scores, ABSENT)
    found[:opened] = totals[:opened] / sizes[:opened] * np.minimum(sizes[:opened], views) / views
    return means, found, kinds


def _iou(box: Floats, others: Floats) -> Floats:
    """Return the IoU of ``box`` ``[4]`` with each of ``others`` ``[N, 4]``."""
    sides = np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2])
    shared = np.maximum(sides, 0).prod(1)
    result: Floats = shared / ((box[2:] - box[:2]).prod() + (others[:, 2:] - others[:, :2]).prod(1) - shared)
    return result
