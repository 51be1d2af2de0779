"""The size that a compressed image gives itself: known before a decoder allocates memory for it."""

import struct

# Start-of-frame markers of JPEG, JPEG lossless and JPEG-LS: C0 to CF without DHT, JPG and DAC, and F7.
_FRAME_MARKERS = frozenset({*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC})
_WITHOUT_LENGTH = frozenset({0x01, *range(0xD0, 0xD9)})
_JPEG_2000 = b"\xff\x4f\xff\x51"
_JP2_FILE = b"\x00\x00\x00\x0cjP  "


def codestream_size(frame: bytes) -> tuple[int, int, int] | None:
    """Rows, columns and samples per pixel of a JPEG, JPEG-LS or JPEG 2000 image; None if it is none of these.

    Markers: ITU-T T.81 table B.1, T.87 annex C; SIZ of JPEG 2000: T.800 annex A.5.1.
    """
    try:
        if frame[:4] == _JPEG_2000 or frame[:8] == _JP2_FILE:
            return _jpeg_2000_size(frame)
        return _jpeg_size(frame) if frame[:2] == b"\xff\xd8" else None
    except (struct.error, IndexError):
        return None


def rle_fits(frame: bytes, plane_bytes: int) -> bool:
    """Whether each segment of a DICOM RLE frame unpacks to one byte plane, and not to more (PS3.5 annex G).

    Two bytes can stand for 128, so that a small file could otherwise fill the memory.
    """
    count, *offsets = struct.unpack_from("<16I", frame) if len(frame) >= 64 else (0,)
    if not 1 <= count <= 15:
        return False
    ends = [*offsets[1:count], len(frame)]
    return all(
        _unpacked(frame[start:end], plane_bytes + 1) <= plane_bytes + 1
        for start, end in zip(offsets, ends, strict=False)
    )


def _unpacked(segment: bytes, limit: int) -> int:
    """How many bytes a PackBits segment unpacks to; counting stops above ``limit``."""
    total = place = 0
    while place < len(segment) and total <= limit:
        control = segment[place]
        if control < 128:
            total += control + 1
            place += control + 2
        else:
            total += 257 - control if control > 128 else 0
            place += 1 if control == 128 else 2
    return total


def _jpeg_size(frame: bytes) -> tuple[int, int, int] | None:
    place = 2
    while frame[place] == 0xFF:
        marker = frame[place + 1]
        if marker == 0xFF:  # fill bytes may precede a marker
            place += 1
        elif marker in _WITHOUT_LENGTH:
            place += 2
        elif marker in _FRAME_MARKERS:
            rows, columns, samples = struct.unpack_from(">HHB", frame, place + 5)
            return rows, columns, samples
        else:
            place += 2 + struct.unpack_from(">H", frame, place + 2)[0]
    return None


def _jpeg_2000_size(frame: bytes) -> tuple[int, int, int] | None:
    start = frame.find(_JPEG_2000, 0, 4096)
    if start < 0:
        return None
    right, bottom, left, top = struct.unpack_from(">4I", frame, start + 8)
    return bottom - top, right - left, struct.unpack_from(">H", frame, start + 40)[0]
