"""Conversions of boxes: to corners, and between original and prepared pixels."""

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


def xyxy(boxes: np.ndarray) -> np.ndarray:
    """Return the corners of boxes ``[N, 4]`` that are given as x, y, width, height."""
    return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1)


def letterbox_scale(height: int, width: int, image_size: int) -> float:
    """Return the factor from original pixels to prepared pixels; the top left corner stays where it is."""
    return image_size / max(height, width)


def to_original(boxes: Floats, height: int, width: int, image_size: int) -> Floats:
    """Convert boxes ``[N, 4]`` xyxy of a prepared image to pixels of the original, clipped to it."""
    return np.asarray(np.clip(boxes / letterbox_scale(height, width, image_size), 0, [width, height, width, height]))
