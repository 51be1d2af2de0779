"""Conversion of stored DICOM values to grey levels; dense tissue is bright (PS3.3 C.7.6.3, C.11.1 and C.11.2).

Each step maps one value to one value, so all steps together are one table of at most 65,536 entries. The table
is computed once, and each pixel is looked up in it. This is exact, and needs memory for the result only.
"""

import cv2
import numpy as np
import numpy.typing as npt
import pydicom

from pipeline.dicom.header import numbers, whole_number
from pipeline.dicom.levels import Levels
from pipeline.dicom.lookup_tables import modality_table, voi_table
from pipeline.dicom.windows import apply_window
from pipeline.errors import BadStudyError

Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[np.float32]

# Without a window, values are stretched between these percentiles; markers and dead pixels lie outside them.
_STRETCH = (0.1, 99.9)
_BLOCK_PIXELS = 2**20


def to_grey(dataset: pydicom.Dataset, stored: np.ndarray) -> Levels:
    """Turn stored values ``[H, W]``, or colours ``[H, W, 3]``, into grey levels ``[H, W]``.

    Colours become luminance, and are not windowed. Other values pass through the modality's rescaling or table, then
    through the header's VOI table or window. Without either, 8-bit words that the modality step left unchanged stay
    as they are, and all others are stretched. MONOCHROME1 is inverted, so dense tissue is always bright. Padding is
    black.

    Returns:
        uint8, or uint16 over its whole range if the file stores more than 8 bits.

    Raises:
        BadStudyError: all pixels that are not padding have the same value, or the header contradicts itself.
    """
    if stored.ndim == 3:
        return plain_to_grey(stored)
    native = stored.astype(stored.dtype.newbyteorder("="), copy=False)
    words = native.view(f"u{native.dtype.itemsize}")
    counts = _counts(words)
    samples = _samples(dataset, counts)
    padding = _padding(dataset, samples)
    shown = _table(dataset, samples, np.where(padding, 0, counts))
    deep = words.dtype == np.uint16 and int(dataset.BitsStored) > 8
    table = _quantized(np.where(padding, 0, shown), np.uint16 if deep else np.uint8)
    return _look_up(_with_contrast(table, (counts > 0) & ~padding), words)


def plain_to_grey(stored: np.ndarray) -> Levels:
    """Turn values without a header, ``[H, W]`` or colours ``[H, W, 3]`` RGB, into grey levels; dense tissue is bright.

    Colours become luminance. 8-bit values stay as they are, and 16-bit ones are stretched, because nothing says how
    many of their bits are used.

    Raises:
        BadStudyError: all pixels have the same value.
    """
    words = cv2.cvtColor(stored, cv2.COLOR_RGB2GRAY) if stored.ndim == 3 else stored
    counts = _counts(words)
    table = _quantized(_plain_table(counts), np.uint16 if words.dtype == np.uint16 else np.uint8)
    return _look_up(_with_contrast(table, counts > 0), words)


def _with_contrast(table: Levels, there: npt.NDArray[np.bool_]) -> Levels:
    """Return the table; refuse an image whose words, those that are ``there``, all have one grey level."""
    seen = table[there]
    if not len(seen) or seen.min() == seen.max():
        raise BadStudyError("all pixels have one value")
    return table


def _table(dataset: pydicom.Dataset, samples: npt.NDArray[np.int64], counts: Counts) -> Floats:
    """Return the brightness of each possible word, from 0 to 1; ``counts`` holds how often the image has it."""
    values, changed = _modality_values(dataset, samples)
    shown = voi_table(dataset, values)
    if shown is None:
        shown = apply_window(dataset, values)
    if shown is None:
        as_they_are = len(samples) == 256 and not changed
        shown = samples / 255 if as_they_are else _stretch(values, counts)
    shown = np.clip(shown, 0, 1)
    return 1 - shown if dataset.PhotometricInterpretation == "MONOCHROME1" else shown


def _samples(dataset: pydicom.Dataset, counts: Counts) -> npt.NDArray[np.int64]:
    """Return the sample that each possible word holds (PS3.5 8.1.1); the word's other bits may hold anything."""
    bits, high = int(dataset.BitsStored), whole_number(dataset, "HighBit")
    signed = bool(whole_number(dataset, "PixelRepresentation"))
    shift = 0 if high is None else high - bits + 1
    if dataset.file_meta.TransferSyntaxUID.is_encapsulated:
        shift = _compressed_shift(shift, bits, counts, signed)
    if shift < 0 or 2 ** (shift + bits) > len(counts):
        raise BadStudyError(f"HighBit {high} does not fit BitsStored {bits}")
    samples = (np.arange(len(counts)) >> shift) & (2**bits - 1)
    return np.asarray(np.where(samples >= 2 ** (bits - 1), samples - 2**bits, samples) if signed else samples)


def _compressed_shift(shift: int, bits: int, counts: Counts, signed: bool) -> int:
    """Return the shift of decoded samples: 0 (the low bits), unless the encoder was given words with higher samples."""
    if not counts[2**bits :].any():
        return 0
    if shift == 0 and not signed:
        raise BadStudyError(f"the compressed image has values of more bits than BitsStored {bits}")
    return shift


def _padding(dataset: pydicom.Dataset, samples: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """Return a mask of the possible words that the device wrote where there is no image (PS3.3 C.7.5.1.1.2)."""
    value, limit = whole_number(dataset, "PixelPaddingValue"), whole_number(dataset, "PixelPaddingRangeLimit")
    if value is None:
        return np.zeros(samples.shape, np.bool_)
    low, high = sorted((value, value if limit is None else limit))
    if samples.min() <= low and high <= samples.max():
        return (samples >= low) & (samples <= high)
    # The padding value was written as a word of the other signedness, or does not fit into the bits of a sample.
    words, size = np.arange(len(samples)), len(samples)
    low, high = sorted((low % size, high % size))
    return (words >= low) & (words <= high)


def _modality_values(dataset: pydicom.Dataset, samples: npt.NDArray[np.int64]) -> tuple[Floats, bool]:
    """Return the samples after the modality's table or rescaling, and whether that changed them."""
    mapped = modality_table(dataset, samples)
    if mapped is not None:
        return mapped, True
    slope, intercept = numbers(dataset, "RescaleSlope"), numbers(dataset, "RescaleIntercept")
    # A slope of 0 would give all pixels one value, which cannot be intended.
    if len(slope) != 1 or slope[0] == 0:
        slope, intercept = [1.0], intercept if not slope else [0.0]
    offset = intercept[0] if len(intercept) == 1 else 0.0
    return np.asarray(samples * slope[0] + offset, np.float64), (slope[0], offset) != (1, 0)


def _plain_table(counts: Counts) -> Floats:
    values = np.arange(len(counts), dtype=np.float64)
    return values / 255 if len(counts) == 256 else _stretch(values, counts)


def _stretch(values: Floats, counts: Counts) -> Floats:
    """Scale the values so that two percentiles of the image, which has each value ``counts`` times, are 0 and 1."""
    seen = counts > 0
    if not seen.any():
        raise BadStudyError("all pixels are padding")
    # This is numpy's only method with weights; the usual mean of two neighbours differs by less than a grey level.
    low, high = np.percentile(values[seen], _STRETCH, weights=counts[seen], method="inverted_cdf")
    if not high > low:
        raise BadStudyError("all pixels have one value")
    return np.asarray((values - low) / (high - low))


def _counts(words: np.ndarray) -> Counts:
    """Count how often the image has each possible word, ``[256]`` or ``[65536]``."""
    size = 2 ** (8 * words.dtype.itemsize)
    return np.asarray(cv2.calcHist([words], [0], None, [size], [0, size]).ravel())


def _quantized(shown: Floats, dtype: type[np.uint8] | type[np.uint16]) -> Levels:
    return np.round(np.clip(shown, 0, 1) * np.iinfo(dtype).max).astype(dtype)


def _look_up(table: Levels, words: np.ndarray) -> Levels:
    """Look up words in the table; 16-bit images block by block, because numpy turns each index into 8 bytes."""
    if words.dtype == np.uint8 and table.dtype == np.uint8:
        unchanged = bool((table == np.arange(len(table))).all())  # as for most 8-bit files
        return words if unchanged else np.asarray(cv2.LUT(words, table), np.uint8)
    levels = np.empty(words.shape, table.dtype)
    rows = max(1, _BLOCK_PIXELS // words.shape[1])
    for start in range(0, len(words), rows):
        levels[start : start + rows] = table[words[start : start + rows]]
    return levels
