"""Decoding of DICOM's run-length coding (PS3.5 annex G) into samples."""

import struct

import numpy as np
import numpy.typing as npt

from pipeline.errors import BadStudyError


def decode_rle(frame: bytes, size: tuple[int, int, int], sample_bytes: int) -> np.ndarray:
    """Decode one frame, which has a segment for each byte of a sample, the highest byte first.

    Args:
        frame: the compressed image.
        size: rows, columns, samples per pixel.
        sample_bytes: 1 or 2.

    Returns:
        uint8 or uint16, ``[H, W]`` or ``[H, W, 3]``.

    Raises:
        BadStudyError: a segment unpacks to fewer or more bytes than the image has pixels.
    """
    rows, columns, samples = size
    planes = np.empty((rows * columns, samples, sample_bytes), np.uint8)
    for number, segment in enumerate(_segments(frame, samples * sample_bytes)):
        sample, byte = divmod(number, sample_bytes)
        planes[:, sample, sample_bytes - 1 - byte] = _unpacked(segment, rows * columns)
    words = planes.view(f"<u{sample_bytes}")
    return words.reshape((rows, columns) if samples == 1 else size)


def _segments(frame: bytes, wanted: int) -> list[bytes]:
    if len(frame) < 64:
        raise BadStudyError("the run-length coded image is truncated")
    count, *offsets = struct.unpack_from("<16I", frame)
    if count != wanted:
        raise BadStudyError(f"the run-length coded image has {count} segments, the header says {wanted}")
    ends = [*offsets[1:count], len(frame)]
    if offsets[0] < 64 or any(start >= end for start, end in zip(offsets, ends, strict=False)):
        raise BadStudyError("the run-length coded image is truncated")
    return [frame[start:end] for start, end in zip(offsets, ends, strict=False)]


def _unpacked(segment: bytes, length: int) -> npt.NDArray[np.uint8]:
    """Unpack PackBits (a control byte, then bytes to copy or one to repeat) until the plane's last byte."""
    plane, position = bytearray(), 0
    try:
        while len(plane) < length:
            control = segment[position]
            if control < 128:
                plane += segment[position + 1 : position + 2 + control]
                position += control + 2
            elif control > 128:
                plane += segment[position + 1 : position + 2] * (257 - control)
                position += 2
            else:
                position += 1
    except IndexError:
        raise BadStudyError("the run-length coded image is truncated") from None
    # A padding byte may follow, which makes the segment's length even.
    if position > len(segment):
        raise BadStudyError("the run-length coded image is truncated")
    if len(plane) > length + 1 or segment[position:].strip(b"\0"):
        raise BadStudyError("the run-length coded image is larger than the header says")
    return np.frombuffer(plane, np.uint8)[:length]
