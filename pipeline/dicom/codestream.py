"""Parsing of a whole JPEG or JPEG-LS image (ITU-T T.81 annex B, T.87 annex C) before a decoder sees it."""

import re
import struct
from dataclasses import dataclass, field

from pipeline.errors import BadStudyError

SEQUENTIAL, PROGRESSIVE, LOSSLESS, JPEG_LS = frozenset({0xC0, 0xC1}), 0xC2, 0xC3, 0xF7
_START, _END = b"\xff\xd8", b"\xff\xd9"
_DHT, _DAC, _EOI, _SOS, _DQT, _DNL, _DRI = 0xC4, 0xCC, 0xD9, 0xDA, 0xDB, 0xDC, 0xDD
_FRAME_MARKERS = frozenset({*range(0xC0, 0xD0), 0xF7} - {_DHT, 0xC8, _DAC})
# Application data and comments; only the JFIF marker among them is used.
_SKIPPED = frozenset({*range(0xE0, 0xF0), 0xFE})
_LSE = 0xF8

# A marker that ends entropy-coded data. In JPEG, FF 00 is a data byte, and the restart markers D0 to D7 are part of
# the data; in JPEG-LS, data have a 0 bit after FF.
_NEXT_MARKER = re.compile(rb"\xff+[^\x00\xd0-\xd7\xff]")
_NEXT_MARKER_LS = re.compile(rb"\xff[\x80-\xcf\xd8-\xfe]")

# The usual scripts of encoders have 6 to 14 scans. Each scan of a progressive image costs a pass over all of it.
_MOST_SCANS = 32


@dataclass(frozen=True)
class Component:
    """One colour of the frame; its sampling factors give the number of its blocks in a coded unit (MCU)."""

    identifier: int
    horizontal: int
    vertical: int


@dataclass(frozen=True)
class Scan:
    """One pass over some components.

    Attributes:
        components: the components' positions in the frame.
        tables: the numbers of the Huffman tables that each component uses, (DC, AC).
        huffman: the tables in force, from the DHT segments; see `_huffman_tables`.
        selection: Ss and Se: the first and last coefficient of the scan; in lossless JPEG, Ss is the predictor.
        approximation: Ah and Al.
        interval: number of coded units between restart markers; 0 for none.
        data: the entropy-coded bytes.
    """

    components: tuple[int, ...]
    tables: tuple[tuple[int, int], ...]
    huffman: dict[int, bytes]
    selection: tuple[int, int]
    approximation: tuple[int, int]
    interval: int
    data: memoryview


@dataclass
class Jpeg:
    """A whole JPEG image that has been walked to its end.

    Attributes:
        process: the start-of-frame marker's second byte.
        segments: the bytes needed to decode the image, in their order, without application data and comments.
        length: number of bytes of the frame that the image takes.
    """

    process: int = 0
    precision: int = 0
    rows: int = 0
    columns: int = 0
    components: tuple[Component, ...] = ()
    scans: list[Scan] = field(default_factory=list)
    is_jfif: bool = False
    length: int = 0
    segments: list[bytes | memoryview] = field(default_factory=list)
    huffman: dict[int, bytes] = field(default_factory=dict)
    interval: int = 0

    @property
    def size(self) -> tuple[int, int, int]:
        """Return rows, columns and samples per pixel."""
        return self.rows, self.columns, len(self.components)


def read_jpeg(frame: bytes) -> Jpeg:
    """Walk through a JPEG or JPEG-LS image from its first to its last marker.

    Bytes after the end-of-image marker are not part of the image.

    Raises:
        BadStudyError: the image is damaged or cut off, has no frame or two, or more scans than an encoder writes.
    """
    if frame[:2] != _START:
        raise BadStudyError("the compressed image is not of the kind that the header says")
    image, view, position = Jpeg(), memoryview(frame), 2
    try:
        while (marker := _marker(frame, position)) != _EOI:
            position = _take(image, marker, frame, view, _skip_fill(frame, position))
    except (struct.error, IndexError):
        raise BadStudyError("the JPEG image is truncated") from None
    image.length = _skip_fill(frame, position) + 2
    if not image.scans or frame[image.length :].lstrip(b"\0")[:3] == b"\xff\xd8\xff":
        raise BadStudyError("the JPEG data must be one image")
    return image


def rebuilt(image: Jpeg, segments: list[bytes | memoryview], *, is_ycc: bool) -> bytes:
    """Return an image of segments that were walked through, and nothing else, that states its colour space explicitly.

    Adobe's APP14 marker tells a decoder whether three components are YCbCr (T.872 6.5.3).
    """
    adobe = b"\xff\xee\x00\x0eAdobe" + struct.pack(">HHHB", 100, 0, 0, is_ycc)
    return b"".join([_START, adobe if len(image.components) == 3 else b"", *segments, _END])


def _marker(frame: bytes, position: int) -> int:
    if frame[position] != 0xFF:
        raise BadStudyError("the JPEG data are damaged: a marker is missing")
    return frame[_skip_fill(frame, position) + 1]


def _skip_fill(frame: bytes, position: int) -> int:
    """Return the position of the marker's own byte FF, which any number of fill bytes FF may precede."""
    while frame[position + 1] == 0xFF:
        position += 1
    return position


def _take(image: Jpeg, marker: int, frame: bytes, view: memoryview, position: int) -> int:
    """Read the segment at ``position`` and return the position of the next one."""
    end = position + 2 + int(struct.unpack_from(">H", frame, position + 2)[0])
    body = frame[position + 4 : end]
    if end > len(frame):
        raise IndexError
    if marker == _SOS:
        return _take_scan(image, frame, view, (position, end), body)
    if marker in _FRAME_MARKERS:
        _take_frame(image, marker, body)
    elif marker == _DHT:
        image.huffman = {**image.huffman, **_huffman_tables(body)}
    elif marker == _DRI:
        image.interval = int(struct.unpack(">H", body)[0])
    elif marker in _SKIPPED:
        image.is_jfif |= body[:4] == b"JFIF"
        return end
    elif marker not in (_DQT, _LSE):
        raise BadStudyError(f"the JPEG data are damaged: marker {marker:02X}")
    image.segments.append(view[position:end])
    return end


def _take_frame(image: Jpeg, marker: int, body: bytes) -> None:
    if image.process:
        raise BadStudyError("the JPEG data must be one image")
    image.process = marker
    image.precision, image.rows, image.columns, count = struct.unpack_from(">BHHB", body)
    if len(body) != 6 + 3 * count:
        raise BadStudyError("the JPEG data are damaged: frame header")
    parts = [body[6 + 3 * number : 9 + 3 * number] for number in range(count)]
    image.components = tuple(Component(part[0], part[1] >> 4, part[1] & 15) for part in parts)
    if not all(1 <= part.horizontal <= 4 and 1 <= part.vertical <= 4 for part in image.components):
        raise BadStudyError("the JPEG data are damaged: sampling factors")


def _take_scan(image: Jpeg, frame: bytes, view: memoryview, header: tuple[int, int], body: bytes) -> int:
    count, position = body[0], header[1]
    identifiers = [part.identifier for part in image.components]
    parts = [body[1 + 2 * number : 3 + 2 * number] for number in range(count)]
    chosen = tuple(identifiers.index(part[0]) for part in parts if part[0] in identifiers)
    if not 1 <= count == len(set(chosen)) or len(body) != 4 + 2 * count or len(image.scans) == _MOST_SCANS:
        raise BadStudyError("the JPEG data are damaged, or have more scans than are accepted")
    next_marker = (_NEXT_MARKER_LS if image.process == JPEG_LS else _NEXT_MARKER).search(frame, position)
    if next_marker is None:
        raise BadStudyError("the JPEG image is truncated")
    first, last, approximation = body[-3:]
    tables = tuple((part[1] >> 4, part[1] & 15) for part in parts)
    data = view[position : next_marker.start()]
    shift = (approximation >> 4, approximation & 15)
    image.scans.append(Scan(chosen, tables, image.huffman, (first, last), shift, image.interval, data))
    # Some encoders write arbitrary numbers here, but a sequential image allows only these.
    ends = bytes((0, 63, 0)) if image.process in SEQUENTIAL else body[-3:]
    image.segments += [view[header[0] : header[1] - 3], ends, data]
    return next_marker.start()


def _huffman_tables(body: bytes) -> dict[int, bytes]:
    """Map each table's class and number (one byte) to its 16 counts and its symbols (T.81 B.2.4.2)."""
    tables: dict[int, bytes] = {}
    while body:
        end = 17 + sum(body[1:17])
        if len(body) < end:
            raise BadStudyError("the JPEG data are damaged: Huffman table")
        tables[body[0]] = body[1:end]
        body = body[end:]
    return tables
