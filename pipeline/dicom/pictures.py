"""Decoding of radiographs that are stored as plain PNG or JPEG files; a file counts as hostile until it has been read.

A PNG decoder fills up the missing rows of a file that was cut off, or only warns of damage, so its parts and their
checksums are walked beforehand.
"""

import struct
import zlib
from collections.abc import Iterator

import imagecodecs
import numpy as np

from pipeline.dicom.codestream import read_jpeg
from pipeline.dicom.jpeg import decode_jpeg
from pipeline.errors import BadStudyError

_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG = b"\xff\xd8\xff"
_ORIENTATION, _UPRIGHT = 0x0112, 1


def is_picture(head: bytes) -> bool:
    """Tell whether a file that begins with ``head`` is a PNG or JPEG image."""
    return head.startswith((_PNG, _JPEG))


def decode_picture(content: bytes, max_pixels: int) -> np.ndarray:
    """Decode a PNG or JPEG file.

    Returns:
        uint8 or uint16, ``[H, W]``, or colours ``[H, W, 3]`` RGB. Samples of a PNG of 1, 2 or 4 bits span 0 to 255.

    Raises:
        BadStudyError: the file is damaged or cut off, has more than ``max_pixels``, or shows something else when it is
            displayed: it has transparent pixels, several images, or is to be turned.
    """
    return _decode_png(content, max_pixels) if content.startswith(_PNG) else _decode_jpeg(content, max_pixels)


def _decode_jpeg(content: bytes, max_pixels: int) -> np.ndarray:
    image = read_jpeg(content)
    rows, columns, samples = image.size
    _require_size(rows, columns, max_pixels)
    if samples not in (1, 3):
        raise BadStudyError(f"a JPEG image of {samples} components: must be 1 (grey) or 3 (colours)")
    if image.precision != 8:
        raise BadStudyError(f"a JPEG image of {image.precision} bits: outside DICOM, 8 are accepted")
    orientation = _exif_orientation(content)
    if orientation != _UPRIGHT:
        raise BadStudyError(f"its Exif data ask to turn the image (orientation {orientation}); store it as it is shown")
    return decode_jpeg(content, image.size, bits=8, is_ycc=samples == 3)[0]


def _require_size(rows: int, columns: int, max_pixels: int) -> None:
    if not rows or not columns:
        raise BadStudyError(f"{rows} x {columns} pixels: no image")
    if rows * columns > max_pixels:
        raise BadStudyError(f"{rows} x {columns} pixels; at most {max_pixels} are accepted")


def _exif_orientation(content: bytes) -> int:
    """Return the value of the Exif tag that says how the image is to be turned; 1, upright, if there is none."""
    start = content.find(b"Exif\x00\x00", 0, 2**16)
    if start < 0:
        return _UPRIGHT
    block = content[start + 6 : start + 6 + 2**16]
    order = {b"II*\x00": "<", b"MM\x00*": ">"}.get(block[:4])
    if order is None or len(block) < 8:
        return _UPRIGHT
    (first,) = struct.unpack(f"{order}I", block[4:8])
    count = struct.unpack(f"{order}H", block[first : first + 2])[0] if first + 2 <= len(block) else 0
    for place in range(first + 2, min(first + 2 + 12 * count, len(block) - 11), 12):
        tag, kind = struct.unpack(f"{order}HH", block[place : place + 4])
        if (tag, kind) == (_ORIENTATION, 3):
            return int(struct.unpack(f"{order}H", block[place + 8 : place + 10])[0])
    return _UPRIGHT


def _decode_png(content: bytes, max_pixels: int) -> np.ndarray:
    kinds = list(_chunks(content))
    if kinds[0] != b"IHDR" or kinds[-1] != b"IEND" or b"IDAT" not in kinds:
        raise BadStudyError("the PNG image is damaged: its header, its pixels or its end is missing")
    if b"acTL" in kinds:
        raise BadStudyError("an animated PNG image; must be a single radiograph")
    columns, rows = struct.unpack(">II", content[16:24])
    _require_size(rows, columns, max_pixels)
    pixels = np.asarray(imagecodecs.png_decode(content))
    if pixels.ndim == 3 and pixels.shape[2] in (2, 4):
        if (pixels[..., -1] != np.iinfo(pixels.dtype).max).any():
            raise BadStudyError("a PNG image with transparent pixels: what they show is not defined")
        pixels = np.ascontiguousarray(pixels[..., :-1])
    return pixels[..., 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels


def _chunks(content: bytes) -> Iterator[bytes]:
    """Yield the type of each part of a PNG file, to its end.

    Raises:
        BadStudyError: the file is cut off, or a checksum is wrong.
    """
    start = len(_PNG)
    while start < len(content):
        if start + 12 > len(content):
            raise BadStudyError("the PNG image is truncated")
        (length,) = struct.unpack(">I", content[start : start + 4])
        end = start + 12 + length
        if end > len(content):
            raise BadStudyError("the PNG image is truncated")
        kind = content[start + 4 : start + 8]
        if zlib.crc32(memoryview(content)[start + 4 : end - 4]) != struct.unpack(">I", content[end - 4 : end])[0]:
            raise BadStudyError("the PNG image is damaged: a checksum is wrong")
        yield kind
        if kind == b"IEND":
            return  # other bytes may follow, and count for nothing
        start = end
    raise BadStudyError("the PNG image is truncated")
