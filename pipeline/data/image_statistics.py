"""Statistics that describe a radiograph in a few numbers: enough to compare 27,000 of them without their pixels."""

from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from pipeline.data.duplicates import perceptual_hash
from pipeline.errors import BadStudyError
from pipeline.files import sha256_of

Image = npt.NDArray[np.uint8]

HISTOGRAM_BINS = 32
# Chest radiographs have standard deviations of 30 to 80 grey levels.
_LITTLE_CONTRAST = 5.0
_MOSTLY = 0.95


def describe(path: Path, pixels: Image) -> dict[str, object]:
    """Describe a file and its decoded pixels, uint8 ``[H, W]``, in values that JSON can hold.

    Raises:
        BadStudyError: all pixels have one value.
    """
    if pixels.min() == pixels.max():
        raise BadStudyError("all pixels have one value")
    shares = _shares(pixels)
    mean, deviation = _moments(shares)
    return {
        "digest": sha256_of(path),
        "hash": perceptual_hash(pixels),
        "mean": round(mean, 3),
        "deviation": round(deviation, 3),
        "nearly_empty": _little_in_it(shares),
        "histogram": _pack(shares.reshape(HISTOGRAM_BINS, -1).sum(1)),
    }


def nearly_empty(pixels: Image) -> bool:
    """Return whether an image, uint8 ``[H, W]``, has hardly any contrast, or is nearly all black or white."""
    return _little_in_it(_shares(pixels))


def grey_features(pixels: Image) -> tuple[float, float]:
    """Return the mean and the standard deviation of an image's grey levels."""
    return float(pixels.mean()), float(pixels.std())


def _shares(pixels: Image) -> npt.NDArray[np.float64]:
    """Return the share of the pixels at each of the 256 grey levels."""
    some = np.ascontiguousarray(pixels[::2, ::2])  # a quarter of the pixels tells as much in a quarter of the time
    counts = cv2.calcHist([some], [0], None, [256], [0, 256]).ravel()
    return np.asarray(counts / counts.sum())


def _moments(shares: npt.NDArray[np.float64]) -> tuple[float, float]:
    """Return the mean and the standard deviation."""
    levels = np.arange(256)
    mean = float(shares @ levels)
    return mean, float(np.sqrt(shares @ (levels - mean) ** 2))


def _little_in_it(shares: npt.NDArray[np.float64]) -> bool:
    deviation = _moments(shares)[1]
    return bool(deviation < _LITTLE_CONTRAST or shares[:3].sum() > _MOSTLY or shares[-3:].sum() > _MOSTLY)


def _pack(shares: npt.NDArray[np.float64]) -> str:
    """Encode shares in hexadecimal, two bytes each: a tenth of the memory of a list of numbers."""
    return np.round(shares * 65535).astype(">u2").tobytes().hex()


def mean_histogram(packed: Iterable[str]) -> npt.NDArray[np.float64]:
    """Return the mean share of the pixels in each of ``HISTOGRAM_BINS`` equal ranges of grey levels, over images."""
    rows = [np.frombuffer(bytes.fromhex(one), ">u2") for one in packed]
    return np.asarray(np.mean(rows, axis=0) / 65535)
