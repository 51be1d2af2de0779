"""Stored DICOM values -> 8-bit grey levels, bright where dense (PS3.3 C.7.6.3, C.11.1 and C.11.2)."""

from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pydicom
from pydicom.pixels import apply_windowing

from pipeline.errors import BadStudyError

Image = npt.NDArray[np.uint8]

# Without a window, deep pixels are stretched between these percentiles: markers and dead pixels lie outside.
_STRETCH = (0.1, 99.9)


def to_grey(dataset: pydicom.Dataset, stored: np.ndarray) -> Image:
    """Turn stored values ``[H, W]``, or colours ``[H, W, 3]``, into uint8 ``[H, W]``.

    Colours become luminance. The modality's rescaling or table comes first, then the header's VOI
    table or window, if there is one; without, 8-bit pixels stay as they are and deeper ones are
    stretched. MONOCHROME1 is inverted, so that dense is always bright. Padding is black.

    Raises:
        BadStudyError: the pixels that are not padding have one value.
    """
    if stored.ndim == 3:
        stored = cv2.cvtColor(stored, cv2.COLOR_RGB2GRAY)
    padding = _padding(dataset, stored)
    values = _modality_values(dataset, stored)
    grey = _voi(dataset, values)
    if grey is None:
        grey = values if values.dtype == np.uint8 else _stretch(values, *_percentiles(values[~padding]))
    pixels = np.asarray(np.clip(grey, 0, 255), np.uint8)
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        pixels = 255 - pixels
    pixels[padding] = 0
    return pixels


def _padding(dataset: pydicom.Dataset, stored: np.ndarray) -> npt.NDArray[np.bool_]:
    """Where the device put what is no part of the image (PS3.3 C.7.5.1.1.2)."""
    value = dataset.get("PixelPaddingValue")
    if value is None:
        return np.zeros(stored.shape, np.bool_)
    limit = dataset.get("PixelPaddingRangeLimit")
    low, high = sorted((int(value), int(value if limit is None else limit)))
    return (stored >= low) & (stored <= high)


def _modality_values(dataset: pydicom.Dataset, stored: np.ndarray) -> np.ndarray:
    if dataset.get("ModalityLUTSequence"):
        return _look_up(dataset, dataset.ModalityLUTSequence[0], stored)[0]
    slope, intercept = _rescale(dataset)
    # Most headers say 1 and 0: then 8-bit pixels stay 8-bit.
    return stored if (slope, intercept) == (1, 0) else stored * slope + intercept


def _rescale(dataset: pydicom.Dataset) -> tuple[float, float]:
    slope, intercept = dataset.get("RescaleSlope"), dataset.get("RescaleIntercept")
    return (1.0 if slope is None else float(slope), 0.0 if intercept is None else float(intercept))


def _voi(dataset: pydicom.Dataset, values: np.ndarray) -> np.ndarray | None:
    """What the header wants to be seen, stretched to 0..255; None if it does not say."""
    if dataset.get("VOILUTSequence"):
        mapped, bits = _look_up(dataset, dataset.VOILUTSequence[0], values)
        return _stretch(mapped, 0, 2**bits - 1)
    if dataset.get("WindowWidth") is None or dataset.get("WindowCenter") is None:
        return None
    return _stretch(apply_windowing(values, dataset), *_window_range(dataset))


def _look_up(dataset: pydicom.Dataset, item: pydicom.Dataset, values: np.ndarray) -> tuple[np.ndarray, int]:
    """Values through a table, and how many bits its entries have.

    Not pydicom's `apply_voi`: it counts places in the type of the entries, so that a table of 4096
    8-bit entries starts again after every 256.
    """
    count, first, bits = (int(number) for number in item.LUTDescriptor)
    table = _table(item.LUTData, "<u2" if dataset.file_meta.TransferSyntaxUID.is_little_endian else ">u2")
    if len(table) < (count or 2**16):
        raise BadStudyError(f"a look-up table of {len(table)} entries; its header says {count or 2**16}")
    places = np.clip(np.round(values).astype(np.int64) - first, 0, (count or 2**16) - 1)
    return table[places], bits


def _table(data: Any, words: str) -> npt.NDArray[np.uint16]:
    if isinstance(data, bytes):
        return np.frombuffer(data, words).astype(np.uint16)
    return np.asarray(data, np.uint16).reshape(-1)


def _window_range(dataset: pydicom.Dataset) -> tuple[float, float]:
    """The range that pydicom's windowing maps to: what the stored bits can say, rescaled."""
    if dataset.get("ModalityLUTSequence"):
        return 0, 2 ** int(dataset.ModalityLUTSequence[0].LUTDescriptor[2]) - 1
    bits, signed = int(dataset.BitsStored), int(dataset.PixelRepresentation)
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    slope, intercept = _rescale(dataset)
    return low * slope + intercept, high * slope + intercept


def _percentiles(values: np.ndarray) -> tuple[float, float]:
    low, high = np.percentile(values, _STRETCH) if values.size else (0.0, 0.0)
    if not high > low:
        raise BadStudyError("all pixels have one value")
    return float(low), float(high)


def _stretch(values: np.ndarray, low: float, high: float) -> np.ndarray:
    return np.round(np.clip((values.astype(np.float64) - low) / (high - low), 0, 1) * 255)
