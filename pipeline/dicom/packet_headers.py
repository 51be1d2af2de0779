"""The header of one packet of a JPEG 2000 tile: the number of bytes that follow for each code block (T.800 B.10)."""

from pipeline.errors import BadStudyError

_LAZY, _TERMINATE_ALL = 1, 4
_SOP, _EPH = b"\xff\x91\x00\x04", b"\xff\x92"
_EPH_STYLE = 4
# A value that no tag tree reaches, and a number of bit planes that no code block exceeds.
_UNKNOWN, _MOST_PLANES = 2**31, 80
# No block has more passes than this, so one segment takes them all.
_ONE_SEGMENT = 109


class Blocks:
    """The code blocks of a precinct's sub-band, and the information read about them so far."""

    def __init__(self, columns: int, rows: int) -> None:
        self.inclusion, self.planes = TagTree(columns, rows), TagTree(columns, rows)
        self.count = columns * rows
        # For each block included so far: the bits of its lengths, and its segment's passes: those read, the maximum.
        self.length_bits = [0] * self.count
        self.segments = [(0, 0)] * self.count


class TagTree:
    """The numbers of a grid of leaves, coded from the coarsest grid to the finest (B.10.2)."""

    def __init__(self, columns: int, rows: int) -> None:
        self.widths, starts, total = [columns], [0], columns * rows
        while columns * rows > 1:
            columns, rows = (columns + 1) // 2, (rows + 1) // 2
            self.widths.append(columns)
            starts.append(total)
            total += columns * rows
        self.starts = starts
        self.low, self.value = [0] * total, [_UNKNOWN] * total

    def is_below(self, leaf: int, threshold: int, bits: "_Bits") -> bool:
        """Tell whether the leaf's number is below the threshold; reads only the bits that decide it."""
        row, column = divmod(leaf, self.widths[0])
        low = 0
        for depth in range(len(self.widths) - 1, -1, -1):
            node = self.starts[depth] + (row >> depth) * self.widths[depth] + (column >> depth)
            low = max(low, self.low[node])
            while low < threshold and low < self.value[node]:
                if bits.read(1):
                    self.value[node] = low
                else:
                    low += 1
            self.low[node] = low
        return self.value[node] < threshold


class _Bits:
    """The bits of a packet header; the byte after a byte FF has only seven (B.10.1)."""

    def __init__(self, data: memoryview, position: int) -> None:
        self.data, self.position = data, position
        self.byte = self.left = 0

    def read(self, count: int) -> int:
        value = 0
        for _ in range(count):
            if not self.left:
                self.left = 7 if self.byte == 0xFF else 8
                self.byte = self.data[self.position]
                self.position += 1
            self.left -= 1
            value = value << 1 | self.byte >> self.left & 1
        return value

    def end(self) -> int:
        """Return the position after the header; a last byte FF is followed by one without bits."""
        return self.position + (self.byte == 0xFF)


def read_packet(data: memoryview, position: int, bands: list[Blocks], layer: int, passes: int, style: int) -> int:
    """Walk over one packet at ``position`` and return the position of the next one.

    Raises:
        BadStudyError: the data end before the packet does, or the header is not valid.
    """
    if data[position : position + 4] == _SOP:
        position += 6
    bits, length = _Bits(data, position), 0
    try:
        if bits.read(1):
            length = sum(_block_length(bits, band, number, layer, passes)
                         for band in bands for number in range(band.count))  # fmt: skip
    except IndexError:
        raise BadStudyError("the JPEG 2000 image is truncated") from None
    position = bits.end()
    if style & _EPH_STYLE:
        if data[position : position + 2] != _EPH:
            raise BadStudyError("the JPEG 2000 data are damaged: a packet header has no end")
        position += 2
    if position + length > len(data):
        raise BadStudyError("the JPEG 2000 image is truncated")
    return position + length


def _block_length(bits: _Bits, band: Blocks, number: int, layer: int, style: int) -> int:
    """Return the number of bytes of a code block that the packet has."""
    was_included = band.length_bits[number] > 0
    if not (bits.read(1) if was_included else band.inclusion.is_below(number, layer + 1, bits)):
        return 0
    if not was_included:
        planes = 1
        while not band.planes.is_below(number, planes, bits):
            planes += 1
            if planes > _MOST_PLANES:
                raise BadStudyError("the JPEG 2000 data are damaged: bit planes")
        band.length_bits[number] = 3
    passes = _passes(bits)
    while bits.read(1):
        band.length_bits[number] += 1
        if band.length_bits[number] > 32:
            raise BadStudyError("the JPEG 2000 data are damaged: length of a code block")
    return _segments_length(bits, band, number, passes, style)


def _passes(bits: _Bits) -> int:
    """Read the number of coding passes (table B.4)."""
    if not bits.read(1):
        return 1
    if not bits.read(1):
        return 2
    for width, first in ((2, 3), (5, 6)):
        value = bits.read(width)
        if value < 2**width - 1:
            return first + value
    return 37 + bits.read(7)


def _segments_length(bits: _Bits, band: Blocks, number: int, passes: int, style: int) -> int:
    """Read the length of a block's data; each terminated segment has a length of its own (B.10.7.2)."""
    had, most = band.segments[number]
    length = 0
    while passes:
        if had == most:
            had, most = 0, _next_segment(most, style)
        taken = min(most - had, passes)
        length += bits.read(band.length_bits[number] + taken.bit_length() - 1)
        had, passes = had + taken, passes - taken
    band.segments[number] = (had, most)
    return length


def _next_segment(before: int, style: int) -> int:
    """Return the most passes of the next segment; with bypass: ten, then in turn two raw, one coded (table D.9)."""
    if style & _TERMINATE_ALL:
        return 1
    if style & _LAZY:
        return {0: 10, 10: 2, 1: 2}.get(before, 1)
    return _ONE_SEGMENT
