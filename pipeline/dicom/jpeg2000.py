"""Decoding of JPEG 2000 images (ITU-T T.800 annexes A and I).

OpenJPEG fills up missing parts of an image, silently if a tile ends between two packets. So the whole codestream
is walked before it is decoded, and the decoder sees that codestream and nothing else.
"""

import struct
from dataclasses import dataclass, field

import imagecodecs
import numpy as np

from pipeline.dicom.packets import Coding, Tile, read_coding, require_whole_tile
from pipeline.errors import BadStudyError

_JP2_FILE = b"\x00\x00\x00\x0cjP  \r\n\x87\n"
_START, _SIZ = b"\xff\x4f\xff\x51", 0x51
_COD, _COC, _SOT, _SOD = 0x52, 0x53, 0x90, 0x93
# Other segments of main and tile-part headers: TLM, PLM, PLT, QCD, QCC, RGN, CRG, COM. Packed packet headers and
# changes of the progression order (PPM, PPT, POC), which no DICOM encoder is known to write, are not accepted.
_KNOWN = frozenset({0x55, 0x57, 0x58, 0x5C, 0x5D, 0x5E, 0x63, 0x64})
_MOST_BOXES = 64
# Bytes that OpenJPEG allocates for each component of a tile and each code block, besides 4 bytes for each sample.
_TILE_BYTES, _BLOCK_BYTES = 8192, 1024
_BASE_BYTES = 16 * 2**20


@dataclass
class Codestream:
    """A codestream's main header, and its tiles' data.

    Attributes:
        area: the image's area on the reference grid: left, top, right, bottom.
        tile: the first tile's left and top, and the tiles' width and height.
        coding: coding styles by component.
        tiles: tiles by number.
        length: number of bytes from the first to the last marker.
    """

    area: tuple[int, int, int, int]
    tile: tuple[int, int, int, int]
    components: int
    precision: int
    is_signed: bool
    coding: dict[int, Coding] = field(default_factory=dict)
    tiles: dict[int, Tile] = field(default_factory=dict)
    length: int = 0

    @property
    def size(self) -> tuple[int, int, int]:
        """Return rows, columns and samples per pixel."""
        return self.area[3] - self.area[1], self.area[2] - self.area[0], self.components

    def grid(self) -> tuple[int, int]:
        """Return the number of tiles in a column and in a row."""
        left, top, width, height = self.tile
        return -(-(self.area[3] - top) // height), -(-(self.area[2] - left) // width)


def decode_jpeg_2000(frame: bytes, size: tuple[int, int, int]) -> tuple[np.ndarray, int]:
    """Decode one image, a codestream or a JP2 file, whose rows, columns and samples per pixel must be ``size``.

    Returns:
        The samples, ``[H, W]`` or ``[H, W, 3]``, signed if the image says so, and their precision in bits.

    Raises:
        BadStudyError: the image is cut off, damaged, of another size or kind, or asks for more memory than its
            pixels need.
    """
    content = _unboxed(frame) if frame[:12] == _JP2_FILE else frame
    try:
        stream = _read(content, size)
    except (struct.error, IndexError):
        raise BadStudyError("the JPEG 2000 image is truncated") from None
    try:
        part = memoryview(content)[: stream.length]
        pixels = imagecodecs.jpeg2k_decode(part, planar=False, verbose=0)  # type: ignore[arg-type] # any buffer will do
    except (imagecodecs.Jpeg2kError, ValueError):
        raise BadStudyError("the JPEG 2000 image cannot be decoded") from None
    return np.asarray(pixels), stream.precision


def _unboxed(frame: bytes) -> bytes:
    """Return a JP2 file's only codestream (annex I). A box of length 0 reaches to the end; 1 means a long length."""
    position, codestream = 0, None
    for _ in range(_MOST_BOXES):
        if position + 8 > len(frame):
            break
        length, kind, begin = (
            struct.unpack_from(">I", frame, position)[0],
            frame[position + 4 : position + 8],
            position + 8,
        )
        if length == 1:
            length, begin = struct.unpack_from(">Q", frame.ljust(position + 16), begin)[0], position + 16
        end = len(frame) if length == 0 else position + length
        if end < begin or end > len(frame) or (kind == b"jp2c" and codestream is not None):
            break
        if kind == b"jp2h" and b"pclr" in frame[begin:end]:
            raise BadStudyError("JPEG 2000 with a palette: not accepted")
        codestream, position = frame[begin:end] if kind == b"jp2c" else codestream, end
    if codestream is None:
        raise BadStudyError("the JP2 file has no image, or its boxes are damaged")
    return codestream


def _read(content: bytes, size: tuple[int, int, int]) -> Codestream:
    """Walk all markers, and require all packets of all tiles."""
    if content[:4] != _START:
        raise BadStudyError("the compressed image is not of the kind that the header says")
    stream = _read_size(content)
    if stream.size != size:
        raise BadStudyError(
            f"the compressed image measures {stream.size}, the header says {size} (rows, columns, samples)"
        )
    position = 2
    while content[position : position + 2] != b"\xff\x90":
        position = _take_segment(content, position, stream.coding, stream)
    if len(stream.coding) != stream.components:
        raise BadStudyError("the JPEG 2000 data are damaged: coding style")
    while content[position : position + 2] != b"\xff\xd9":
        position = _take_tile_part(content, position, stream)
    stream.length = position + 2
    _require_whole(stream)
    return stream


def _read_size(content: bytes) -> Codestream:
    """Read SIZ (A.5.1). It must be the first segment, so the decoder reads the same one."""
    right, bottom, left, top, *tile, count = struct.unpack_from(">8IH", content, 8)
    width, height, tile_left, tile_top = tile
    kinds = {content[42 + 3 * number : 45 + 3 * number] for number in range(count)}
    if count not in (1, 3) or len(kinds) != 1:
        raise BadStudyError("JPEG 2000 of a kind that is not accepted: its components differ, or are neither 1 nor 3")
    depth, *sampling = kinds.pop()
    if sampling != [1, 1] or depth & 127 > 15:
        raise BadStudyError("JPEG 2000 of a kind that is not accepted: subsampled, or of more than 16 bits")
    inside = tile_left <= left < tile_left + width and tile_top <= top < tile_top + height
    if not inside or right <= left or bottom <= top:
        raise BadStudyError("the JPEG 2000 data are damaged: image size")
    area, tiles = (left, top, right, bottom), (tile_left, tile_top, width, height)
    stream = Codestream(area, tiles, count, (depth & 127) + 1, bool(depth & 128))
    rows, columns = stream.grid()
    if rows * columns * _TILE_BYTES * count > _budget(stream):
        raise BadStudyError(f"the JPEG 2000 image has {rows * columns} tiles, more than are accepted")
    return stream


def _budget(stream: Codestream) -> int:
    rows, columns, samples = stream.size
    return 2 * rows * columns * samples + _BASE_BYTES


def _take_segment(content: bytes, position: int, coding: dict[int, Coding], stream: Codestream) -> int:
    """Read a segment of the main header or a tile-part's header, and return the position of the next one."""
    if position == 2:
        return 4 + int(struct.unpack_from(">H", content, 4)[0])
    marker, length = (int(word) for word in struct.unpack_from(">HH", content, position))
    body = content[position + 4 : position + 2 + length]
    if len(body) != length - 2:
        raise IndexError
    if marker == 0xFF00 + _COD:
        coding.update(dict.fromkeys(range(stream.components), read_coding(body[0], body[1:5], body[5:])))
    elif marker == 0xFF00 + _COC and body[0] in coding:
        style, order = coding[body[0]].style & ~1 | body[1] & 1, coding[body[0]].order
        coding[body[0]] = read_coding(style, order, body[2:])
    elif marker - 0xFF00 not in _KNOWN:
        raise BadStudyError(f"JPEG 2000 of a kind that is not accepted (marker {marker:04X})")
    return position + 2 + length


def _take_tile_part(content: bytes, position: int, stream: Codestream) -> int:
    """Read SOT, the tile-part's header and its packets (A.4.2), and return the position of the next tile-part."""
    marker, length, number, size, part, _ = (int(word) for word in struct.unpack_from(">HHHIBB", content, position))
    rows, columns = stream.grid()
    if marker != 0xFF00 + _SOT or length != 10 or number >= rows * columns:
        raise BadStudyError("the JPEG 2000 data are damaged: a tile is missing")
    end = position + size if size else content.rfind(b"\xff\xd9")
    if not position + 14 <= end <= len(content) - 2:
        raise BadStudyError("the JPEG 2000 image is truncated")
    tile = stream.tiles.setdefault(number, Tile(dict(stream.coding)))
    if part != len(tile.parts):
        raise BadStudyError("the JPEG 2000 data are damaged: a tile-part is missing")
    position += 12
    while content[position : position + 2] != b"\xff\x93":
        position = _take_segment(content, position, tile.coding, stream)
        if position > end - 2:
            raise BadStudyError("the JPEG 2000 data are damaged: tile-part header")
    tile.parts.append(memoryview(content)[position + 2 : end])
    return end


def _require_whole(stream: Codestream) -> None:
    rows, columns = stream.grid()
    if len(stream.tiles) != rows * columns:
        raise BadStudyError(f"the JPEG 2000 image has {len(stream.tiles)} of its {rows * columns} tiles")
    left, top, width, height = stream.tile
    budget = _budget(stream)
    for number, tile in stream.tiles.items():
        x, y = left + number % columns * width, top + number // columns * height
        low_x, low_y, high_x, high_y = stream.area
        box = max(x, low_x), max(y, low_y), min(x + width, high_x), min(y + height, high_y)
        budget -= _BLOCK_BYTES * require_whole_tile(tile, box, budget // _BLOCK_BYTES)
