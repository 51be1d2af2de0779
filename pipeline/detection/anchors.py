"""Anchors of the RetinaNet pyramid, and boxes written relative to them."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

LEVEL_STRIDES = (8, 16, 32, 64, 128)
# The side of an anchor of scale 1 is four strides of its level (Lin et al. 2017, section 4).
BASE_SIZE = 4
# exp of a larger value would give boxes of more than 1000 / 16 times their anchor.
MAX_LOG_SCALE = math.log(1000 / 16)
# No box is so many of its anchor's widths or heights away; times a width of pixels, 1e38 would not be finite.
MAX_SHIFT = 1e4
# Pixels; a box or anchor without an area has no logarithm, and nothing can be divided by its side.
MIN_SIDE = 1e-3


Shape = tuple[float, float]


def shape_grid(scales: Sequence[float], ratios: Sequence[float]) -> tuple[Shape, ...]:
    """Every scale with every ratio, in torchvision's order."""
    return tuple((scale, ratio) for ratio in ratios for scale in scales)


def anchor_sizes(stride: int, shapes: Sequence[Shape]) -> Tensor:
    """Widths and heights of one level's anchors, ``[S, 2]`` pixels.

    A shape is a scale (a factor on the level's base size) and a ratio (height / width); all ratios
    of a scale have one area. As in torchvision, a side of ratio 1 is a whole number of pixels.
    """
    scales, ratios = torch.tensor(shapes, dtype=torch.float64).T
    sides = (BASE_SIZE * stride * scales).floor()
    return torch.stack([sides / ratios.sqrt(), sides * ratios.sqrt()], 1)


def level_grid(side: int, stride: int) -> int:
    """Cells along a side of ``side`` pixels at a level; each stride-2 convolution rounds up."""
    return math.ceil(side / stride)


class Anchors(NamedTuple):
    """The anchors of images of one size, float32 xyxy pixels, in the order of a head's output.

    Attributes:
        levels: per pyramid level ``[A_l, 4]``.
        boxes: of all levels ``[A, 4]``.
        sides: the same as ``[4, A]``, each coordinate in one piece, which vector loops need.
    """

    levels: tuple[Tensor, ...]
    boxes: Tensor
    sides: Tensor

    def to(self, device: torch.device) -> "Anchors":
        """The anchors on ``device``."""
        return Anchors(tuple(level.to(device) for level in self.levels), self.boxes.to(device), self.sides.to(device))


def make_anchors(height: int, width: int, shapes: Sequence[Shape]) -> Anchors:
    """Anchors of every level, P3 to P7.

    Args:
        height: of the image in pixels.
        width: of the image in pixels.
        shapes: scale and ratio of each anchor of a cell.

    Returns:
        The anchors of a level in the order rows, columns, shapes. As in torchvision, the first
        anchor is centred on the corner (0, 0), corners of shapes are rounded, and where a level
        does not divide the image, its anchors stand closer than its stride.
    """
    levels = []
    for stride in LEVEL_STRIDES:
        half = (anchor_sizes(stride, shapes) / 2).to(torch.float32)
        corners = torch.cat([-half, half], 1).round()  # (S, 4)
        rows, columns = level_grid(height, stride), level_grid(width, stride)
        y = torch.arange(rows) * (height // rows)
        x = torch.arange(columns) * (width // columns)
        shift_y, shift_x = torch.meshgrid(y, x, indexing="ij")
        shifts = torch.stack([shift_x, shift_y, shift_x, shift_y], -1).reshape(-1, 1, 4)
        levels.append((shifts + corners).reshape(-1, 4))
    boxes = torch.cat(levels)
    return Anchors(tuple(levels), boxes, boxes.t().contiguous())


def encode_boxes(boxes: Tensor, anchors: Tensor) -> Tensor:
    """Boxes as offsets from anchors (Girshick et al. 2014): dx / w, dy / h, log w, log h.

    Args:
        boxes: ``[..., 4]`` xyxy; a side below ``MIN_SIDE`` counts as that.
        anchors: ``[..., 4]`` xyxy, broadcastable to ``boxes``; likewise.
    """
    anchor_size = anchors[..., 2:] - anchors[..., :2]
    size = boxes[..., 2:] - boxes[..., :2]
    divisor = anchor_size.clamp(min=MIN_SIDE)
    shift = (boxes[..., :2] + size / 2 - anchors[..., :2] - anchor_size / 2) / divisor
    return torch.cat([shift, torch.log(size.clamp(min=MIN_SIDE) / divisor)], -1)


def decode_boxes(deltas: Tensor, anchors: Tensor) -> Tensor:
    """The inverse of `encode_boxes`, finite for any finite offsets.

    Log sizes are clamped at ``MAX_LOG_SCALE`` from above, shifts at ``MAX_SHIFT`` from both sides.
    """
    anchor_size = anchors[..., 2:] - anchors[..., :2]
    centre = anchors[..., :2] + anchor_size / 2 + deltas[..., :2].clamp(-MAX_SHIFT, MAX_SHIFT) * anchor_size
    half = torch.exp(deltas[..., 2:].clamp(max=MAX_LOG_SCALE)) * anchor_size / 2
    return torch.cat([centre - half, centre + half], -1)
