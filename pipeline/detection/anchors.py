"""Anchors of the RetinaNet pyramid, and boxes encoded relative to them."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

LEVEL_STRIDES = (8, 16, 32, 64, 128)
# The side of an anchor of scale 1 is four strides of its level (Lin et al. 2017, section 4).
BASE_SIZE = 4
# exp of a larger value would give boxes more than 1000 / 16 times as large as their anchor.
MAX_LOG_SCALE = math.log(1000 / 16)
# No box is this many anchor widths or heights away; 1e38 times a width in pixels would not be finite.
MAX_SHIFT = 1e4
# Pixels. The side of a box or anchor without an area has no logarithm, and cannot be a divisor.
MIN_SIDE = 1e-3


Shape = tuple[float, float]


def shape_grid(scales: Sequence[float], ratios: Sequence[float]) -> tuple[Shape, ...]:
    """Return every scale combined with every ratio, in torchvision's order."""
    return tuple((scale, ratio) for ratio in ratios for scale in scales)


def anchor_sizes(stride: int, shapes: Sequence[Shape]) -> Tensor:
    """Return the widths and heights of one level's anchors, ``[S, 2]`` pixels.

    A shape is a scale (a factor on the level's base size) and a ratio (height / width); all ratios
    of a scale have the same area. As in torchvision, the side at ratio 1 is a whole number of pixels.
    """
    scales, ratios = torch.tensor(shapes, dtype=torch.float64).T
    sides = (BASE_SIZE * stride * scales).floor()
    return torch.stack([sides / ratios.sqrt(), sides * ratios.sqrt()], 1)


def level_grid(side: int, stride: int) -> int:
    """Return the number of a level's cells along a side of ``side`` pixels; each stride-2 convolution rounds up."""
    return math.ceil(side / stride)


class Anchors(NamedTuple):
    """The anchors for images of one size, float32 xyxy pixels, in the order of a head's output.

    Attributes:
        levels: anchors of each pyramid level, ``[A_l, 4]``.
        boxes: anchors of all levels, ``[A, 4]``.
        sides: the same as ``[4, A]``: each coordinate is contiguous in memory, which vector loops need.
        centres: centre of each cell of each level, ``[C_l, 2]``; all anchors of a cell share it, and follow each other.
    """

    levels: tuple[Tensor, ...]
    boxes: Tensor
    sides: Tensor
    centres: tuple[Tensor, ...]

    def to(self, device: torch.device) -> "Anchors":
        """Return the anchors on ``device``."""
        levels, centres = (tuple(part.to(device) for part in parts) for parts in (self.levels, self.centres))
        return Anchors(levels, self.boxes.to(device), self.sides.to(device), centres)


def make_anchors(height: int, width: int, shapes: Sequence[Shape]) -> Anchors:
    """Return the anchors of every level, P3 to P7.

    Args:
        height: image height in pixels.
        width: image width in pixels.
        shapes: scale and ratio of each anchor of a cell.

    Returns:
        The anchors; those of a level are in the order rows, columns, shapes. As in torchvision,
        the first anchor is centred on the corner (0, 0), the corners of shapes are rounded, and if
        a level's stride does not divide the image, its anchors stand closer than its stride.
    """
    levels, centres = [], []
    for stride in LEVEL_STRIDES:
        half = (anchor_sizes(stride, shapes) / 2).to(torch.float32)
        corners = torch.cat([-half, half], 1).round()  # (S, 4)
        rows, columns = level_grid(height, stride), level_grid(width, stride)
        y = torch.arange(rows) * (height // rows)
        x = torch.arange(columns) * (width // columns)
        shift_y, shift_x = torch.meshgrid(y, x, indexing="ij")
        shifts = torch.stack([shift_x, shift_y, shift_x, shift_y], -1).reshape(-1, 1, 4)
        levels.append((shifts + corners).reshape(-1, 4))
        centres.append(shifts[:, 0, :2].to(torch.float32))
    boxes = torch.cat(levels)
    return Anchors(tuple(levels), boxes, boxes.t().contiguous(), tuple(centres))


def encode_boxes(boxes: Tensor, anchors: Tensor) -> Tensor:
    """Encode boxes as offsets from anchors (Girshick et al. 2014): dx / w, dy / h, log w, log h.

    Args:
        boxes: ``[..., 4]`` xyxy; a side below ``MIN_SIDE`` counts as ``MIN_SIDE``.
        anchors: ``[..., 4]`` xyxy, broadcastable to ``boxes``; the same minimum applies.
    """
    anchor_size = anchors[..., 2:] - anchors[..., :2]
    size = boxes[..., 2:] - boxes[..., :2]
    divisor = anchor_size.clamp(min=MIN_SIDE)
    shift = (boxes[..., :2] + size / 2 - anchors[..., :2] - anchor_size / 2) / divisor
    return torch.cat([shift, torch.log(size.clamp(min=MIN_SIDE) / divisor)], -1)


def decode_boxes(deltas: Tensor, anchors: Tensor) -> Tensor:
    """Decode offsets into boxes: the inverse of `encode_boxes`, finite for any finite offsets.

    Log sizes are clamped at ``MAX_LOG_SCALE`` from above, shifts at ``MAX_SHIFT`` from both sides.
    """
    anchor_size = anchors[..., 2:] - anchors[..., :2]
    centre = anchors[..., :2] + anchor_size / 2 + deltas[..., :2].clamp(-MAX_SHIFT, MAX_SHIFT) * anchor_size
    half = torch.exp(deltas[..., 2:].clamp(max=MAX_LOG_SCALE)) * anchor_size / 2
    return torch.cat([centre - half, centre + half], -1)
