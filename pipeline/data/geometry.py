"""Conversions of boxes, to corners and between original and prepared pixels, and their overlap."""

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


def xyxy(boxes: np.ndarray) -> np.ndarray:
    """Return the corners of boxes ``[N, 4]`` that are given as x, y, width, height."""
    return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1)


def iou(a: Floats, b: Floats) -> Floats:
    """Return the IoU of each box of ``a`` ``[N, 4]`` with each of ``b`` ``[M, 4]``, both x, y, width, height."""
    left, right = a.reshape(-1, 1, 4), b.reshape(1, -1, 4)
    low = np.maximum(left[..., :2], right[..., :2])
    high = np.minimum(left[..., :2] + left[..., 2:], right[..., :2] + right[..., 2:])
    shared = np.clip(high - low, 0, None).prod(-1)
    return np.asarray(shared / np.maximum(left[..., 2:].prod(-1) + right[..., 2:].prod(-1) - shared, 1e-12))


def letterbox_scale(height: int, width: int, image_size: int) -> float:
    """Return the factor from original pixels to prepared pixels; the top left corner stays where it is."""
    return image_size / max(height, width)


def to_original(boxes: Floats, height: int, width: int, image_size: int) -> Floats:
    """Convert boxes ``[N, 4]`` xyxy of a prepared image to pixels of the original, clipped to it."""
    return np.asarray(np.clip(boxes / letterbox_scale(height, width, image_size), 0, [width, height, width, height]))
