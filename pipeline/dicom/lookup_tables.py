"""The modality and VOI look-up tables of a DICOM header (PS3.3 C.11.1.1 and C.11.2.1.1), as files have them.

pydicom's `apply_voi` is not used: it computes positions in the dtype of the entries, so a table of 4096 8-bit
entries starts again after every 256.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import pydicom

from pipeline.dicom.header import items, numbers, whole_number
from pipeline.errors import BadStudyError

Floats = npt.NDArray[np.float64]
Entries = npt.NDArray[np.int64]


def modality_table(dataset: pydicom.Dataset, values: npt.NDArray[Any]) -> Floats | None:
    """Map values through the header's modality table; return None if the header has none.

    Raises:
        BadStudyError: the table is shorter than its descriptor says.
    """
    item = _first_table(dataset, "ModalityLUTSequence")
    if item is None:
        return None
    return _look_up(dataset, item, values)[0].astype(np.float64)


def voi_table(dataset: pydicom.Dataset, values: Floats) -> Floats | None:
    """Map values through the header's first VOI table to brightness from 0 to 1; return None if there is none.

    Entries are scaled by the bits that the descriptor states. If the largest entry needs more bits or fewer,
    the descriptor is wrong (computed radiography has 12-bit entries with a descriptor of 16 bits), and the
    largest entry is white.

    Raises:
        BadStudyError: the table is shorter than its descriptor says.
    """
    item = _first_table(dataset, "VOILUTSequence")
    if item is None:
        return None
    mapped, entries, bits = *_look_up(dataset, item, values), _descriptor(item)[2]
    largest = int(entries.max())
    white = 2**bits - 1 if 0 < largest.bit_length() == bits else max(largest, 1)
    return mapped / white


def _first_table(dataset: pydicom.Dataset, keyword: str) -> pydicom.Dataset | None:
    """Return the first item with data and a descriptor of three numbers; items may be empty, and then do not count."""
    for item in items(dataset, keyword):
        if len(numbers(item, "LUTDescriptor")) == 3 and item.get("LUTData"):
            return item
    return None


def _descriptor(item: pydicom.Dataset) -> tuple[int, int, int]:
    """Return the number of entries, the first value mapped, and the bits of an entry."""
    count, first, bits = (int(number) for number in numbers(item, "LUTDescriptor"))
    # The number 65,536 does not fit into 16 bits, and is written as 0.
    return count % 2**16 or 2**16, first, bits


def _look_up(dataset: pydicom.Dataset, item: pydicom.Dataset, values: npt.NDArray[Any]) -> tuple[Entries, Entries]:
    """Return values mapped through a table, and the table's entries; values outside take its first or last entry."""
    count, first, _ = _descriptor(item)
    entries = _entries(item.LUTData, count, dataset.file_meta.TransferSyntaxUID.is_little_endian)
    signed = bool(whole_number(dataset, "PixelRepresentation")) or bool(values.min() < 0)
    first = _first_value(first, count, signed, float(values.min()), float(values.max()))
    positions = np.clip(np.round(values).astype(np.int64) - first, 0, count - 1)
    return entries[positions], entries


def _first_value(first: int, count: int, signed: bool, low: float, high: float) -> int:
    """Return the first value mapped: 16 bits that are signed if the pixels are, whatever the header's representation.

    If that reading puts the whole table outside the range of the pixels and the other one does not, the other is meant.
    """
    unsigned = first % 2**16
    readings = [unsigned, unsigned - 2**16] if unsigned >= 2**15 else [unsigned]
    if signed:
        readings.reverse()
    overlapping = [one for one in readings if one <= high and one + count > low]
    return (overlapping or readings)[0]


def _entries(data: Any, count: int, little_endian: bool) -> Entries:
    """Return the entries of a table: words, or bytes if there are only as many bytes as entries."""
    if isinstance(data, bytes):
        even = data[: len(data) // 2 * 2]
        words = np.frombuffer(even, "<u2" if little_endian else ">u2")
    else:
        words = (np.asarray(data, np.int64).reshape(-1) % 2**16).astype(np.uint16)
    if len(words) >= count:
        return words[:count].astype(np.int64)
    # The first of the two bytes in a word is the low one (PS3.5 8.1.2).
    packed = words.astype("<u2").tobytes()
    if isinstance(data, bytes) and len(data) == count:
        packed = packed + data[len(packed) :]
    if len(packed) < count or len(words) > (count + 1) // 2:
        raise BadStudyError(f"a look-up table of {len(words)} entries; its header says {count}")
    return np.frombuffer(packed, np.uint8)[:count].astype(np.int64)
