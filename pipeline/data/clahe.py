"""A radiograph of any size -> the square, contrast-equalised image that the detector sees."""

import cv2
import numpy as np
import numpy.typing as npt

Image = npt.NDArray[np.uint8]


def letterbox_scale(height: int, width: int, image_size: int) -> float:
    """The factor from original pixels to prepared pixels; the top left corner stays where it is."""
    return image_size / max(height, width)


def letterbox(image: Image, image_size: int) -> Image:
    """Resize uint8 ``[H, W]`` to fit ``[image_size, image_size]``; black at the right and bottom."""
    height, width = image.shape
    scale = letterbox_scale(height, width, image_size)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    # INTER_AREA averages what it shrinks; it would repeat pixels where it enlarges.
    resized = cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    padded = np.zeros((image_size, image_size), np.uint8)
    padded[: size[1], : size[0]] = resized
    return padded


def equalize(image: Image, clip_limit: float, tile_grid_size: tuple[int, int]) -> Image:
    """CLAHE (Zuiderveld 1994) of uint8 ``[H, W]``; ``clip_limit`` 0 returns the image as it is.

    ``tile_grid_size`` is columns, rows, as in OpenCV.
    """
    if clip_limit == 0:
        return image
    return np.asarray(cv2.createCLAHE(clip_limit, tile_grid_size).apply(image), np.uint8)


def prepare(image: Image, image_size: int, clip_limit: float, tile_grid_size: tuple[int, int]) -> Image:
    """Resize, then equalise: the tiles then have one size whatever the original measured.

    The padding is left out of the equalisation, or its black would darken the tiles it touches.
    """
    height, width = image.shape
    scale = letterbox_scale(height, width, image_size)
    padded = letterbox(image, image_size)
    rows, columns = max(1, round(height * scale)), max(1, round(width * scale))
    padded[:rows, :columns] = equalize(np.ascontiguousarray(padded[:rows, :columns]), clip_limit, tile_grid_size)
    return padded
