"""A walk through the Huffman codes of a JPEG scan, which finds damage that the decoder ignores silently.

The codes of an undamaged scan end with the last sample, in the scan's last byte. Damage that shifts the codes makes
them end too early or too late, or makes a code that no table has (ITU-T T.81 annexes F and H).
"""

import re
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from pipeline.dicom.codestream import LOSSLESS, Jpeg, Scan
from pipeline.errors import BadStudyError

Table = npt.NDArray[np.uint8]

_CHUNK_BYTES = 2**16
_RESTART = re.compile(rb"\xff+[\xd0-\xd7]")
# A coded unit has up to 10 blocks, a block up to 64 codes; a code and the bits that follow it take up to 32 bits.
_LONGEST = 10 * 64 * 32 // 8
# Steps that no ordinary code makes among the 63 AC coefficients: a sum of steps tells the end of a block from a block
# that is too long, or from a code that no table has.
_END_OF_BLOCK, _NO_CODE = 100, 200


def require_sound_codes(image: Jpeg) -> None:
    """Walk each scan of a sequential or lossless image.

    Raises:
        BadStudyError: a scan ends before its last sample, continues after it, or has a code that no table has.
    """
    for scan in image.scans:
        units = _units(image, scan)
        interval = scan.interval or units
        segments = [bytes(part) for part in _RESTART.split(scan.data)]
        if len(segments) != -(-units // interval):
            raise BadStudyError("the JPEG data are damaged: restart markers")
        tables = _code_tables(image, scan)
        for number, segment in enumerate(segments):
            count = min(interval, units - number * interval)
            _walk(segment.replace(b"\xff\x00", b"\xff"), count, tables, lossless=image.process == LOSSLESS)


def _units(image: Jpeg, scan: Scan) -> int:
    """Count the coded units (MCUs) of a scan: samples or blocks of one component, or interleaved ones of several."""
    side = 1 if image.process == LOSSLESS else 8
    parts = [image.components[index] for index in scan.components]
    high, wide = max(part.vertical for part in image.components), max(part.horizontal for part in image.components)
    if len(parts) > 1:
        return -(-image.rows // (side * high)) * -(-image.columns // (side * wide))
    rows, columns = -(-image.rows * parts[0].vertical // high), -(-image.columns * parts[0].horizontal // wide)
    return -(-rows // side) * -(-columns // side)


def _code_tables(image: Jpeg, scan: Scan) -> list[tuple[Table, ...]]:
    """Return the tables of each block of a coded unit; the next 16 bits are the index into a table."""
    tables: list[tuple[Table, ...]] = []
    for index, (dc, ac) in zip(scan.components, scan.tables, strict=True):
        try:
            own: tuple[Table, ...] = (_dc_table(scan.huffman[dc]),)
            if image.process != LOSSLESS:
                own += _ac_tables(scan.huffman[16 + ac])
        except KeyError:
            raise BadStudyError("the JPEG data are damaged: a Huffman table is missing") from None
        part = image.components[index]
        tables += [own] * (part.horizontal * part.vertical if len(scan.components) > 1 else 1)
    return tables


def _dc_table(table: bytes) -> Table:
    lengths, symbols = _codes(table)
    # A symbol is the number of bits of a difference; 16 stands for 32768, without further bits (H.1.2.2).
    return np.where(lengths == 0, 0, lengths + np.where(symbols < 16, symbols, 0)).astype(np.uint8)


def _ac_tables(table: bytes) -> tuple[Table, Table]:
    lengths, symbols = _codes(table)
    run, size = symbols >> 4, symbols & 15
    steps = np.where((size == 0) & (run < 15), _END_OF_BLOCK, run + 1)
    return (lengths + size).astype(np.uint8), np.where(lengths == 0, _NO_CODE, steps).astype(np.uint8)


def _codes(table: bytes) -> tuple[Table, Table]:
    """Return length and symbol of the code that the next 16 bits begin with; the length is 0 if there is no code."""
    lengths, symbols = np.zeros(2**16, np.uint8), np.zeros(2**16, np.uint8)
    code, taken = 0, 16
    for length in range(1, 17):
        for _ in range(table[length - 1]):
            end = code + 2 ** (16 - length)
            lengths[code:end], symbols[code:end] = length, table[taken]
            code, taken = end, taken + 1
    if code > 2**16:
        raise BadStudyError("the JPEG data are damaged: Huffman table")
    return lengths, symbols


def _walk(data: bytes, count: int, tables: list[tuple[Table, ...]], *, lossless: bool) -> None:
    """Walk ``count`` coded units; ``data`` must end with the last of them, padded to a whole byte."""
    position, total = 0, 8 * len(data)
    try:
        for start in range(0, max(len(data), 1), _CHUNK_BYTES):
            limit = min(8 * _CHUNK_BYTES, total - 8 * start)
            steps = _by_position(data, start, tables)
            walk = _walk_samples if lossless else _walk_blocks
            position, count = walk(steps, position, limit, count)
            position -= 8 * _CHUNK_BYTES
    except IndexError:
        raise BadStudyError("the JPEG image is truncated") from None
    left = limit - 8 * _CHUNK_BYTES - position
    if count or left < 0:
        raise BadStudyError("the JPEG image is truncated")
    if left >= 8:
        raise BadStudyError("the JPEG data are damaged: data behind the last sample")


def _by_position(data: bytes, start: int, tables: list[tuple[Table, ...]]) -> list[list[bytes]]:
    """Look up each table at each bit of a chunk, because a code may begin at any of them."""
    part = np.frombuffer(data[start : start + _CHUNK_BYTES + _LONGEST] + b"\xff\xff", np.uint8).astype(np.intp)
    words = (part[:-2] << 16) | (part[1:-1] << 8) | part[2:]
    steps = [[np.empty((len(words), 8), np.uint8) for _ in own] for own in tables]
    for bit in range(8):
        windows = (words >> (8 - bit)) & 0xFFFF
        for own, own_steps in zip(tables, steps, strict=True):
            for table, step in zip(own, own_steps, strict=True):
                step[:, bit] = table[windows]
    return [[step.tobytes() for step in own_steps] for own_steps in steps]


def _walk_samples(steps: Sequence[Sequence[bytes]], position: int, limit: int, count: int) -> tuple[int, int]:
    """Walk a lossless scan, in which each sample of each component is one code."""
    lengths = [own[0] for own in steps]
    if len(lengths) == 1:
        position, count = _walk_fast(lengths[0], position, limit, count)
    while count and position < limit:
        for own in lengths:
            length = own[position]
            if not length:
                raise BadStudyError("the JPEG data are damaged: a code that no table has")
            position += length
        count -= 1
    return position, count


def _walk_fast(lengths: bytes, position: int, limit: int, count: int) -> tuple[int, int]:
    """Walk eight samples at a time, except the last ones; a code outside the table has length 0 and stops the walk."""
    while count > 8 and position < limit - 8 * _LONGEST:
        position += lengths[position]
        position += lengths[position]
        position += lengths[position]
        position += lengths[position]
        position += lengths[position]
        position += lengths[position]
        position += lengths[position]
        position += lengths[position]
        count -= 8
    return position, count


def _walk_blocks(steps: Sequence[Sequence[bytes]], position: int, limit: int, count: int) -> tuple[int, int]:
    while count and position < limit:
        for dc, ac, runs in steps:
            length, coefficient = dc[position], 0
            position += length
            while coefficient < 63:
                coefficient += runs[position]
                position += ac[position]
            if not length or (coefficient != 63 and not _END_OF_BLOCK <= coefficient < _END_OF_BLOCK + 63):
                raise BadStudyError("the JPEG data are damaged: a code that no table has, or a block too long")
        count -= 1
    return position, count
