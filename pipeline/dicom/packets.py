"""The packets of a JPEG 2000 tile (ITU-T T.800 annex B): each of them must be there, and nothing else.

Nothing is decoded here, because packet headers alone give the lengths of the packets. If a header is damaged or a
tile ends too early, these lengths do not add up to the tile's.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import product

from pipeline.dicom.packet_headers import Blocks, read_packet
from pipeline.errors import BadStudyError

Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Coding:
    """Coding style of a component, from COD or COC (A.6.1).

    Attributes:
        style: flags of the packets: 1 means that precincts are given, 2 SOP markers, 4 EPH markers.
        order: progression order, number of layers (2 bytes), component transform.
        levels: number of wavelet decomposition levels.
        block: exponents of the code blocks' width and height.
        passes: code block style.
        precincts: exponents of the precincts' width and height, by resolution.
    """

    style: int
    order: bytes
    levels: int
    block: tuple[int, int]
    passes: int
    precincts: tuple[tuple[int, int], ...]

    @property
    def layers(self) -> int:
        """Return the number of quality layers."""
        return int.from_bytes(self.order[1:3], "big")


@dataclass
class Tile:
    """The coding style of a tile, by component, and the data of its tile-parts."""

    coding: dict[int, Coding]
    parts: list[memoryview] = field(default_factory=list)


def read_coding(style: int, order: bytes, body: bytes) -> Coding:
    """Read the fields that COD and COC have in common.

    Raises:
        BadStudyError: the standard does not allow a value.
    """
    levels, wide, high, passes = body[0], body[1] + 2, body[2] + 2, body[3]
    sizes = body[5 : 6 + levels] if style & 1 else bytes((0xFF,)) * (levels + 1)
    # Bit 6 of the code block style means high throughput, which is another standard.
    if levels > 32 or wide > 10 or high > 10 or wide + high > 12 or passes > 63 or len(sizes) != levels + 1:
        raise BadStudyError("the JPEG 2000 data are damaged: coding style")
    return Coding(style, order, levels, (wide, high), passes, tuple((size & 15, size >> 4) for size in sizes))


def require_whole_tile(tile: Tile, box: Box, most_blocks: int) -> int:
    """Walk through the packets of a tile that covers ``box`` (left, top, right, bottom).

    Returns:
        The number of code blocks of the tile.

    Raises:
        BadStudyError: packets are missing, end too early or too late, or have more than ``most_blocks`` code blocks.
    """
    first = tile.coding[0]
    data = tile.parts[0] if len(tile.parts) == 1 else memoryview(b"".join(tile.parts))
    grids = [_Grid(coding, component, level, box) for component, coding in tile.coding.items()
             for level in range(coding.levels + 1)]  # fmt: skip
    # A packet takes at least a byte, and a precinct has at least one packet of each layer.
    if sum(grid.count for grid in grids) * max(first.layers, 1) > len(data) or not first.layers:
        raise BadStudyError("the JPEG 2000 image is truncated: fewer bytes than packets")
    blocks = sum(grid.blocks() for grid in grids)
    if blocks > most_blocks:
        raise BadStudyError("the JPEG 2000 image has more code blocks than are accepted")
    position = 0
    for precinct, layer in _in_order([precinct for grid in grids for precinct in grid.precincts()], first):
        style = tile.coding[precinct.component]
        position = read_packet(data, position, precinct.bands, layer, style.passes, style.style)
    if position < len(data):
        raise BadStudyError("the JPEG 2000 data are damaged: data behind the last packet")
    return blocks


def _in_order(precincts: list["_Precinct"], first: Coding) -> Iterator[tuple["_Precinct", int]]:
    """Yield all packets in the order in which they are stored (B.12)."""
    key = _ORDERS.get(first.order[0])
    if key is None:
        raise BadStudyError("the JPEG 2000 data are damaged: progression order")
    packets = ((precinct, layer) for precinct in precincts for layer in range(first.layers))
    # Sorting is stable: precincts with the same key keep their order.
    yield from sorted(packets, key=lambda packet: key(packet[1], packet[0]))


_ORDERS: dict[int, Callable[[int, "_Precinct"], tuple[int, ...]]] = {
    0: lambda layer, part: (layer, part.level, part.component),
    1: lambda layer, part: (part.level, layer, part.component),
    2: lambda layer, part: (part.level, *part.corner, part.component, layer),
    3: lambda layer, part: (*part.corner, part.component, part.level, layer),
    4: lambda layer, part: (part.component, *part.corner, part.level, layer),
}


@dataclass(frozen=True)
class _Precinct:
    """One precinct of a resolution level; ``corner`` is its top and left on the reference grid."""

    level: int
    component: int
    corner: tuple[int, int]
    bands: list[Blocks]


@dataclass(frozen=True)
class _Grid:
    """The precincts of a tile's component at one resolution level, 0 being the coarsest (B.5 to B.7)."""

    coding: Coding
    component: int
    level: int
    box: Box

    @property
    def _reduction(self) -> int:
        return self.coding.levels - self.level

    def _cells(self) -> Box:
        """Return the precincts' first column and row, and their last column and row plus one."""
        wide, high = self.coding.precincts[self.level]
        left, top, right, bottom = (-(-side >> self._reduction) for side in self.box)
        if right <= left or bottom <= top:
            return (0, 0, 0, 0)
        return left >> wide, top >> high, -(-right >> wide), -(-bottom >> high)

    @property
    def count(self) -> int:
        left, top, right, bottom = self._cells()
        return (right - left) * (bottom - top)

    def precincts(self) -> Iterator[_Precinct]:
        left, top, right, bottom = self._cells()
        wide, high = self.coding.precincts[self.level]
        for row, column in product(range(top, bottom), range(left, right)):
            corner = (max(self.box[1], row << high << self._reduction),
                      max(self.box[0], column << wide << self._reduction))  # fmt: skip
            bands = [Blocks(*cells) for cells in self._block_cells(row, column) if all(cells)]
            yield _Precinct(self.level, self.component, corner, bands)

    def blocks(self) -> int:
        """Estimate the number of code blocks; blocks that lie across two precincts make it inexact."""
        left, top, right, bottom = self._cells()
        wide, high = (min(pair) for pair in zip(self.coding.block, self.coding.precincts[self.level], strict=True))
        across = -(-self.box[2] >> self._reduction >> wide) - (self.box[0] >> self._reduction >> wide)
        down = -(-self.box[3] >> self._reduction >> high) - (self.box[1] >> self._reduction >> high)
        return (across + right - left) * (down + bottom - top)

    def _block_cells(self, row: int, column: int) -> Iterator[tuple[int, int]]:
        """Yield the columns and rows of code blocks for each sub-band of a precinct."""
        wide, high = self.coding.precincts[self.level]
        # Above the coarsest level a precinct is half as wide and high in each of its three sub-bands.
        half = 1 if self.level else 0
        depth = self._reduction + half
        for right, lower in ((1, 0), (0, 1), (1, 1)) if self.level else ((0, 0),):
            x = _cells_between(self.box[0], self.box[2], depth, right, column, wide - half, self.coding.block[0])
            y = _cells_between(self.box[1], self.box[3], depth, lower, row, high - half, self.coding.block[1])
            yield x, y


def _cells_between(low: int, high: int, depth: int, upper: int, number: int, precinct: int, block: int) -> int:
    """Count the code blocks of one direction in a precinct of a sub-band (B.5, equation B-15, and B.7)."""
    shift = upper << depth >> 1
    start, end = (max(0, -(-(side - shift) >> depth)) for side in (low, high))
    start, end = max(start, number << precinct), min(end, (number + 1) << precinct)
    size = min(block, precinct)
    return -(-end >> size) - (start >> size) if end > start else 0
