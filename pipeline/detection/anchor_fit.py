"""Anchor shapes fitted to the boxes of a data set, and a measure of how well any shapes cover them."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from pipeline.detection.anchors import BASE_SIZE, LEVEL_STRIDES, Anchors, Shape
from pipeline.detection.matching import pairwise_iou
from pipeline.detection.settings import RATIO_BOUNDS, SCALE_BOUNDS

Floats = npt.NDArray[np.float64]
# This many boxes represent a data set; more would cost time, because each is compared with every anchor.
_MOST_BOXES = 1000


def fit_shapes(boxes: npt.ArrayLike, count: int, seed: int) -> tuple[Shape, ...]:
    """Return anchor shapes that suit the boxes, found by k-means on log width and log height.

    Every level has the same shapes at twice the size of the level below, so each box is first
    divided by the base size of the level that it belongs to.

    Args:
        boxes: ``[N, 4]`` xyxy pixels of the prepared images.
        count: number of shapes per cell; fewer if there are fewer different boxes.
        seed: random seed of the first centres.

    Raises:
        ValueError: there is no box.
    """
    from sklearn.cluster import KMeans  # takes a second, and most runs fit no anchors

    sizes = _sizes(boxes)
    if not len(sizes):
        raise ValueError("anchors cannot be fitted: the train split has no box")
    side = np.sqrt(sizes.prod(1))
    level = np.clip(np.floor(np.log2(side / (BASE_SIZE * LEVEL_STRIDES[0]))), 0, len(LEVEL_STRIDES) - 1)
    relative = np.log(sizes / (BASE_SIZE * LEVEL_STRIDES[0] * 2**level)[:, None])
    clusters = min(count, len(np.unique(relative.round(6), axis=0)))
    centres = KMeans(clusters, n_init=10, random_state=seed).fit(relative).cluster_centers_
    widths, heights = np.exp(centres).T
    # Much smaller or longer shapes would have no area once their corners are rounded to whole pixels.
    scales, ratios = np.sqrt(widths * heights).clip(*SCALE_BOUNDS), (heights / widths).clip(*RATIO_BOUNDS)
    shapes = sorted((float(scale), float(ratio)) for scale, ratio in zip(scales, ratios, strict=True))
    return tuple((round(scale, 4), round(ratio, 4)) for scale, ratio in shapes)


@dataclass(frozen=True)
class Coverage:
    """Statistics of how well anchors cover boxes.

    Attributes:
        sizes: width and height of each box, ``[N, 2]`` pixels.
        best_iou: highest IoU of each box with any anchor, ``[N]``.
        positives: number of anchors that reach the foreground threshold with each box, ``[N]``.
        fg_iou_thresh: that threshold.
    """

    sizes: Floats
    best_iou: Floats
    positives: Floats
    fg_iou_thresh: float

    @property
    def covered(self) -> float:
        """Return the share of boxes whose best IoU reaches the foreground threshold."""
        return float((self.best_iou >= self.fg_iou_thresh).mean()) if len(self.best_iou) else 1.0

    def table(self) -> str:
        """Return a CSV table of the boxes by size: number, share covered, mean best IoU, median positives."""
        lines = ["side_pixels,boxes,covered,mean_best_iou,median_positives"]
        side = np.sqrt(self.sizes.prod(1))
        edges = [0, *(BASE_SIZE * stride for stride in LEVEL_STRIDES[1:]), np.inf]
        for low, high in itertools.pairwise(edges):
            chosen = (side >= low) & (side < high)
            if chosen.any():
                best = self.best_iou[chosen]
                values = ((best >= self.fg_iou_thresh).mean(), best.mean(), np.median(self.positives[chosen]))
                lines.append(f"{low:g} to {high:g},{chosen.sum()}," + ",".join(f"{value:.3f}" for value in values))
        return "\n".join(lines) + "\n"


def coverage(anchors: Anchors, boxes: Sequence[npt.ArrayLike], fg_iou_thresh: float, seed: int) -> Coverage:
    """Compare boxes (arrays ``[N_i, 4]`` xyxy; at most 1,000 in all, drawn with ``seed``) with every anchor."""
    joined = np.concatenate([np.asarray(one, np.float64).reshape(-1, 4) for one in boxes] or [np.zeros((0, 4))])
    if len(joined) > _MOST_BOXES:
        joined = joined[np.random.default_rng(seed).choice(len(joined), _MOST_BOXES, replace=False)]
    best, positives = [], []
    for box in torch.from_numpy(joined).float():
        iou = pairwise_iou(box[None], anchors.boxes)[0]
        best.append(float(iou.max()))
        positives.append(float((iou >= fg_iou_thresh).sum()))
    return Coverage(_sizes(joined), np.array(best), np.array(positives), fg_iou_thresh)


def _sizes(boxes: npt.ArrayLike) -> Floats:
    corners = np.asarray(boxes, np.float64).reshape(-1, 4)
    return corners[:, 2:] - corners[:, :2]
