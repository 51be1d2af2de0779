"""Reading of stored values from uncompressed pixel data, without a copy where possible (PS3.5 8.1 and 8.2)."""

import numpy as np
import pydicom

from pipeline.dicom.colours import ycc_to_rgb
from pipeline.errors import BadStudyError


def decode_native(dataset: pydicom.Dataset, size: tuple[int, int, int]) -> np.ndarray:
    """View the bytes as an image whose rows, columns and samples per pixel are ``size``.

    Returns:
        Words of 8 or 16 bits in the file's byte order, ``[H, W]``; colours as RGB ``[H, W, 3]``.

    Raises:
        BadStudyError: there are too few bytes, or enough for a second image.
    """
    rows, columns, samples = size
    kind, allocated = str(dataset.PhotometricInterpretation), int(dataset.BitsAllocated)
    is_halved = kind == "YBR_FULL_422"
    count = rows * (columns + columns % 2) * 2 if is_halved else rows * columns * samples
    words = _words(dataset, count, allocated // 8)
    if samples == 1:
        return words.reshape(rows, columns)
    if is_halved:
        return ycc_to_rgb(_doubled(words, rows, columns))
    is_planar = int(dataset.get("PlanarConfiguration") or 0) == 1
    pixels = words.reshape(samples, rows, columns).transpose(1, 2, 0) if is_planar else words.reshape(size)
    if kind.startswith("YBR"):
        return ycc_to_rgb(pixels)
    return np.ascontiguousarray(pixels, pixels.dtype.newbyteorder("="))


def _words(dataset: pydicom.Dataset, count: int, width: int) -> np.ndarray:
    data, big = dataset.PixelData, not dataset.file_meta.TransferSyntaxUID.is_little_endian
    expected = count * width
    if not expected <= len(data) < max(2 * expected, expected + 1024):
        raise BadStudyError(f"{len(data)} bytes of pixel data; the image that the header describes has {expected}")
    if big and width == 1 and dataset["PixelData"].VR == "OW":
        # The bytes lie in words of 16 bits, so a big-endian file has each pair of them in reverse order.
        padded = np.frombuffer(data, ">u2", len(data) // 2).astype("<u2").view(np.uint8)
        if len(padded) < count:
            raise BadStudyError(f"{len(data)} bytes of pixel data in words of two; the image has {expected}")
        return padded[:count]
    sign = "i" if int(dataset.get("PixelRepresentation") or 0) else "u"
    return np.frombuffer(data, f"{'>' if big else '<'}{sign}{width}", count)


def _doubled(words: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Give each pixel its own colours: two pixels that share theirs are stored as Y, Y, Cb, Cr."""
    pairs = words.reshape(rows, -1, 4)
    pixels = np.empty((rows, 2 * pairs.shape[1], 3), words.dtype)
    pixels[:, ::2, 0], pixels[:, 1::2, 0] = pairs[..., 0], pairs[..., 1]
    for colour in (1, 2):
        pixels[:, ::2, colour] = pixels[:, 1::2, colour] = pairs[..., 1 + colour]
    return pixels[:, :columns]
