"""Grey levels as they are stored: in 8 bits, or in 16 bits for files with more than 8."""

from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

Image = npt.NDArray[np.uint8]
# uint8, or uint16 for a file that stores more than 8 bits; both over their whole range.
Levels = npt.NDArray[np.unsignedinteger[Any]]


def to_8_bits(image: Levels) -> Image:
    """Convert grey levels over the whole range of their type, ``[H, W]``, to uint8."""
    if image.dtype == np.uint8:
        return np.asarray(image, np.uint8)
    return np.asarray(cv2.convertScaleAbs(image, alpha=1 / 257), np.uint8)
