"""A radiograph of any size -> the square, contrast-equalised image that the detector sees."""

from dataclasses import dataclass
from typing import Annotated, Any

import cv2
import numpy as np
import numpy.typing as npt
from pydantic import Field, with_config

from pipeline.bounds import CHECKED, Channel, ClipLimit, EachOnce, ImageSize, Tiles
from pipeline.data.deep_clahe import equalize_deep

Image = npt.NDArray[np.uint8]
# uint8, or uint16 of a file that stores more than 8 bits; both over their whole range.
Levels = npt.NDArray[np.unsignedinteger[Any]]


@with_config(CHECKED)
@dataclass(frozen=True)
class Preparation:
    """How a radiograph becomes the detector's input; stored with a model, whose input it defines.

    Attributes:
        image_size: side of the square, pixels.
        clip_limit: of CLAHE; 0 turns it off.
        tile_grid_size: of CLAHE; columns, rows.
        channels: what each channel holds: the equalised image, or the grey levels as they were.
    """

    image_size: ImageSize
    clip_limit: ClipLimit
    tile_grid_size: tuple[Tiles, Tiles]
    channels: Annotated[tuple[Channel, ...], Field(min_length=1), EachOnce] = ("clahe",)


def letterbox_scale(height: int, width: int, image_size: int) -> float:
    """The factor from original pixels to prepared pixels; the top left corner stays where it is."""
    return image_size / max(height, width)


def letterbox(image: Levels, image_size: int) -> Levels:
    """Resize ``[H, W]`` to fit ``[image_size, image_size]``, of the same type; black at the right and bottom."""
    height, width = image.shape
    scale = letterbox_scale(height, width, image_size)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    # INTER_AREA averages what it shrinks; it would repeat pixels where it enlarges.
    resized = cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    padded: Levels = np.zeros((image_size, image_size), image.dtype)
    padded[: size[1], : size[0]] = resized
    return padded


def to_8_bits(image: Levels) -> Image:
    """Grey levels over the whole range of their type, ``[H, W]``, as uint8."""
    if image.dtype == np.uint8:
        return np.asarray(image, np.uint8)
    return np.asarray(cv2.convertScaleAbs(image, alpha=1 / 257), np.uint8)


def equalize(image: Levels, clip_limit: float, tile_grid_size: tuple[int, int]) -> Image:
    """CLAHE (Zuiderveld 1994) of ``[H, W]`` in the depth that it has, as uint8; ``clip_limit`` 0 only reduces it.

    ``tile_grid_size`` is columns, rows, as in OpenCV.
    """
    if clip_limit == 0:
        return to_8_bits(image)
    if image.dtype == np.uint16:
        return equalize_deep(image, clip_limit, tile_grid_size)
    return np.asarray(cv2.createCLAHE(clip_limit, tile_grid_size).apply(image), np.uint8)


def prepare(image: Levels, rules: Preparation) -> Image:
    """Resize, then equalise: the tiles then have one size whatever the original measured.

    The padding is left out of the equalisation, or its black would darken the tiles it touches.

    Args:
        image: uint8 or uint16 ``[H, W]``; an image of 16 bits is reduced to 8 after the equalisation.
        rules: the size, the channels and how they are equalised.

    Returns:
        uint8 ``[S, S]`` for one channel, ``[S, S, C]`` for more.
    """
    height, width = image.shape
    scale = letterbox_scale(height, width, rules.image_size)
    resized = letterbox(image, rules.image_size)
    raw = to_8_bits(resized)
    rows, columns = max(1, round(height * scale)), max(1, round(width * scale))
    clahe = raw.copy()
    inside = np.ascontiguousarray(resized[:rows, :columns])
    clahe[:rows, :columns] = equalize(inside, rules.clip_limit, rules.tile_grid_size)
    layers = [{"clahe": clahe, "raw": raw}[name] for name in rules.channels]
    return layers[0] if len(layers) == 1 else np.stack(layers, -1)
