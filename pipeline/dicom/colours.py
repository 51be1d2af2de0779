"""Conversion of YCbCr to RGB (PS3.3 C.7.6.3.1.2: full range, as in JFIF)."""

import cv2
import numpy as np
import numpy.typing as npt

from pipeline.errors import BadStudyError

_BLOCK_ROWS = 64


def ycc_to_rgb(pixels: np.ndarray) -> npt.NDArray[np.uint8]:
    """Convert ``[H, W, 3]`` uint8, some rows at a time, so that the image is not in memory three times.

    Raises:
        BadStudyError: the samples have more than 8 bits.
    """
    if pixels.dtype != np.uint8:
        raise BadStudyError("YBR colours of more than 8 bits: not accepted")
    rgb = np.empty(pixels.shape, np.uint8)
    for start in range(0, len(pixels), _BLOCK_ROWS):
        block = np.ascontiguousarray(pixels[start : start + _BLOCK_ROWS, :, [0, 2, 1]])
        rgb[start : start + _BLOCK_ROWS] = cv2.cvtColor(block, cv2.COLOR_YCrCb2RGB)
    return rgb
