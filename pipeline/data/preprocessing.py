"""Preprocessing of a radiograph of any size to the square, contrast-equalised image that the detector sees."""

import cv2
import numpy as np

from pipeline.data.deep_clahe import equalize_deep
from pipeline.data.geometry import letterbox_scale
from pipeline.data.settings import Preprocessing
from pipeline.dicom.levels import Image, Levels, to_8_bits


def letterbox(image: Levels, image_size: int) -> Levels:
    """Resize ``[H, W]`` to fit ``[image_size, image_size]`` of the same dtype, with black at the right and bottom."""
    height, width = image.shape
    scale = letterbox_scale(height, width, image_size)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    # INTER_AREA averages pixels when it shrinks, but would repeat them when it enlarges.
    resized = cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    padded: Levels = np.zeros((image_size, image_size), image.dtype)
    padded[: size[1], : size[0]] = resized
    return padded


def equalize(image: Levels, clip_limit: float, tile_grid_size: tuple[int, int]) -> Image:
    """Apply CLAHE (Zuiderveld 1994) to ``[H, W]`` in its own depth, to uint8; ``clip_limit`` 0 only reduces the depth.

    ``tile_grid_size`` is columns, rows, as in OpenCV.
    """
    if clip_limit == 0:
        return to_8_bits(image)
    if image.dtype == np.uint16:
        return equalize_deep(image, clip_limit, tile_grid_size)
    return np.asarray(cv2.createCLAHE(clip_limit, tile_grid_size).apply(image), np.uint8)


def preprocess(image: Levels, settings: Preprocessing) -> Image:
    """Resize, then equalise, so that the tiles have one size whatever the size of the original.

    The padding is left out of the equalisation, because its black would darken the tiles that it touches.

    Args:
        image: uint8 or uint16 ``[H, W]``; an image of 16 bits is reduced to 8 after the equalisation.
        settings: the size, the channels and how they are equalised.

    Returns:
        uint8 ``[S, S]`` for one channel, ``[S, S, C]`` for more.
    """
    height, width = image.shape
    scale = letterbox_scale(height, width, settings.image_size)
    resized = letterbox(image, settings.image_size)
    raw = to_8_bits(resized)
    rows, columns = max(1, round(height * scale)), max(1, round(width * scale))
    clahe = raw.copy()
    inside = np.ascontiguousarray(resized[:rows, :columns])
    clahe[:rows, :columns] = equalize(inside, settings.clip_limit, settings.tile_grid_size)
    layers = [{"clahe": clahe, "raw": raw}[name] for name in settings.channels]
    return layers[0] if len(layers) == 1 else np.stack(layers, -1)
