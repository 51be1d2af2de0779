"""Repair of JPEG images that claim 16 bits: GDCM writes images of 9 to 12 bits in words of 16 bits this way.

A lossy JPEG image has 8 or 12 bits (ITU-T T.81 table B.2), and its samples are coded as differences from the
middle of their range. GDCM takes 2^15 as the middle. Only the first block holds that offset, because every other
block is coded as a difference from the one before; so the first code is replaced, and the image has 12 bits.
"""

import struct
from collections.abc import Iterator

from pipeline.dicom.codestream import Jpeg, Scan
from pipeline.errors import BadStudyError

# The DC coefficient of a block is 8 times its mean.
_SHIFT = 8 * (2**15 - 2**11)


def with_12_bits(image: Jpeg) -> list[bytes | memoryview]:
    """Return the image's segments with a precision of 12 bits and a matching first block.

    Raises:
        BadStudyError: the image has several components or restart intervals, which GDCM does not write.
    """
    if len(image.scans) != 1 or len(image.components) != 1 or image.interval:
        raise BadStudyError("lossy JPEG of 16 bits: not accepted")
    scan, number = image.scans[0], image.scans[0].tables[0][0]
    table, data = _moved(scan, scan.huffman[number], round(_SHIFT / _first_step(image)))
    *before, start, ends, _ = image.segments
    definition = b"\xff\xc4" + struct.pack(">HB", 3 + len(table), number) + table
    frame = [bytes((*part[:4], 12, *part[5:])) if part[1] == image.process else part for part in before]
    return [*frame, definition, start, ends, data]


def _first_step(image: Jpeg) -> int:
    """Return the step of the DC coefficient, from the component's quantization table (T.81 B.2.4.1)."""
    steps, wanted = {}, 0
    for segment in image.segments:
        body = bytes(segment[4:])
        if segment[1] == image.process:
            wanted = body[8]
        while segment[1] == 0xDB and body:
            wide = body[0] >> 4
            steps[body[0] & 15] = int.from_bytes(body[1 : 2 + wide], "big")
            body = body[1 + 64 * (1 + wide) :]
    if not steps.get(wanted):
        raise BadStudyError("the JPEG data are damaged: quantization table")
    return steps[wanted]


def _moved(scan: Scan, table: bytes, steps: int) -> tuple[bytes, bytes]:
    """Add ``steps`` to the first difference; return the Huffman table for it, and the scan's data."""
    data = bytes(scan.data).replace(b"\xff\x00", b"\xff")
    bits, total = int.from_bytes(data, "big"), 8 * len(data)
    for length, code, size in _codes(table):
        left = total - length - size
        if left >= 0 and bits >> (total - length) == code:
            # GDCM keeps coefficients in 16 bits, so larger ones have wrapped around.
            value = (_signed(bits >> left & (2**size - 1), size) + steps + 2**15) % 2**16 - 2**15
            break
    else:
        raise BadStudyError("the JPEG data are damaged: a code that no table has")
    size = abs(value).bit_length()
    table = _having(table, size)
    length, code = next((length, code) for length, code, symbol in _codes(table) if symbol == size)
    bits &= 2**left - 1
    bits |= (code << size | (value if value >= 0 else value + 2**size - 1)) << left
    total = left + length + size
    # The last byte is padded with 1 bits.
    spare = -total % 8
    filled = (bits << spare | (2**spare - 1)).to_bytes((total + spare) // 8, "big")
    return table, filled.replace(b"\xff", b"\xff\x00")


def _signed(bits: int, size: int) -> int:
    return bits if not size or bits >> (size - 1) else bits - 2**size + 1


def _codes(table: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield length, code and symbol, in the order of the codes (T.81 annex C)."""
    code, position = 0, 16
    for length in range(1, 17):
        for _ in range(table[length - 1]):
            yield length, code, table[position]
            code, position = code + 1, position + 1
        code <<= 1


def _having(table: bytes, symbol: int) -> bytes:
    """Return the table with a code for the symbol; encoders leave one of the longest codes free."""
    # Differences in 12-bit images never have more than 15 bits; libjpeg refuses a table that says otherwise.
    table = table[:16] + bytes(min(size, 15) for size in table[16:])
    if symbol in table[16:]:
        return table
    if sum(count << (16 - length) for length, count in enumerate(table[:16], 1)) > 2**16 - 2:
        raise BadStudyError("lossy JPEG of 16 bits: not accepted")
    return table[:15] + bytes((table[15] + 1,)) + table[16:] + bytes((symbol,))
