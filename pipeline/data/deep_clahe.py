"""CLAHE of 16-bit images with the contrast limit of 8-bit ones.

OpenCV's CLAHE accepts uint16, but counts in 65,536 bins and clips none of them below one pixel. A tile of a
prepared image has a few hundred or thousand pixels, so hardly any bin is ever clipped: the limit has no effect, and
noise is amplified up to 64 times (a radiograph then differs by 25 grey levels from its own 8-bit copy). Here the
curve of each tile is that of OpenCV's 8-bit CLAHE, interpolated between its 256 levels: a 16-bit image keeps its
fine steps, and looks like its 8-bit copy.
"""

from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

_BINS = 256


def equalize_deep(
    image: npt.NDArray[np.unsignedinteger[Any]], clip_limit: float, tile_grid_size: tuple[int, int]
) -> npt.NDArray[np.uint8]:
    """Equalise uint16 ``[H, W]`` and return uint8 ``[H, W]``; ``tile_grid_size`` is columns, rows.

    For an image whose levels are multiples of 257 (an 8-bit image in 16 bits), the result is OpenCV's 8-bit CLAHE.
    """
    columns, rows = tile_grid_size
    height, width = image.shape
    levels = np.asarray(image, np.float32) / np.float32(257)  # 0 to 255
    padded = _fill_tiles(levels, columns, rows)
    curves = _tile_curves(padded, columns, rows, clip_limit)  # (rows, columns, 257)
    tile_height, tile_width = padded.shape[0] / rows, padded.shape[1] / columns
    above, below, low_weight = _neighbours(height, tile_height, rows)
    left, right, right_weight = _neighbours(width, tile_width, columns)
    equalized = np.empty(image.shape, np.uint8)
    for y in range(height):
        between = curves[above[y]] * (1 - low_weight[y]) + curves[below[y]] * low_weight[y]  # (columns, 257)
        lower = levels[y].astype(np.intp)
        fraction = levels[y] - lower
        ends = [between[tile, lower] * (1 - fraction) + between[tile, lower + 1] * fraction for tile in (left, right)]
        equalized[y] = np.clip(np.round(ends[0] * (1 - right_weight) + ends[1] * right_weight), 0, 255)
    return equalized


def _fill_tiles(levels: npt.NDArray[np.float32], columns: int, rows: int) -> npt.NDArray[np.float32]:
    """Pad by mirroring the right and lower edges, as OpenCV does (both or neither), until all tiles have one size."""
    height, width = levels.shape
    if height % rows == 0 and width % columns == 0:
        return levels
    more = (rows - height % rows, columns - width % columns)
    return np.asarray(cv2.copyMakeBorder(levels, 0, more[0], 0, more[1], cv2.BORDER_REFLECT_101), np.float32)


def _tile_curves(levels: npt.NDArray[np.float32], columns: int, rows: int, clip_limit: float) -> Floats:
    """Return the curve of each tile at levels 0 to 255, ``[rows, columns, 257]``; the last value is repeated."""
    tile_height, tile_width = levels.shape[0] // rows, levels.shape[1] // columns
    area = tile_height * tile_width
    tiles = np.round(levels).astype(np.intp).reshape(rows, tile_height, columns, tile_width).swapaxes(1, 2)
    numbered = tiles.reshape(rows * columns, area) + np.arange(rows * columns)[:, None] * _BINS
    counts = np.bincount(numbered.ravel(), minlength=rows * columns * _BINS).reshape(-1, _BINS)
    clipped = _clip(counts, max(int(clip_limit * area / _BINS), 1))
    curves = np.cumsum(clipped, 1) * (255 / area)
    return np.concatenate([curves, curves[:, -1:]], 1).reshape(rows, columns, _BINS + 1)


def _clip(counts: npt.NDArray[np.intp], limit: int) -> npt.NDArray[np.intp]:
    """Clip each bin at ``limit`` and spread the excess over all bins of the tile; evenly spaced bins get the rest."""
    excess = np.clip(counts - limit, 0, None).sum(1)
    dealt = np.asarray(np.minimum(counts, limit) + (excess // _BINS)[:, None], np.intp)
    for tile, rest in enumerate(excess % _BINS):
        if rest:
            dealt[tile, np.arange(rest) * max(_BINS // rest, 1)] += 1
    return dealt


def _neighbours(length: int, tile: float, count: int) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp], Floats]:
    """Return, for each row or column, the tiles on both sides of it and the weight of the second one."""
    position = np.arange(length) / tile - 0.5
    first = np.floor(position).astype(np.intp)
    return np.clip(first, 0, count - 1), np.clip(first + 1, 0, count - 1), position - first
