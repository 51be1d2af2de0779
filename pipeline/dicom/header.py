"""Parsing of a DICOM file's header within bounds, and access to its optional values where they can be read."""

import io
import math
from typing import Any

import pydicom
from pydicom import uid
from pydicom.dataset import FileMetaDataset
from pydicom.filereader import read_dataset, read_preamble

from pipeline.errors import BadStudyError

# Each element and each item costs pydicom at least one read; compressed pixel data are read in pieces of 8 KiB.
_MOST_READS = 20_000
_BYTES_PER_READ = 2048
# An optional value is a few numbers or words. pydicom makes a list of a longer one, with 100 bytes of memory a number.
_MOST_VALUE_BYTES = 4096
# Two tables of 65,536 entries and their descriptors need less. A hostile sequence of this size has 131,072 empty items.
_MOST_SEQUENCE_BYTES = 2**20


class _BoundedFile(io.BytesIO):
    """A file in memory that refuses to be read in too many pieces, because four million empty items fill the memory."""

    def __init__(self, content: bytes) -> None:
        super().__init__(content)
        self._reads = _MOST_READS + len(content) // _BYTES_PER_READ

    def read(self, size: int | None = -1, /) -> bytes:
        self._reads -= 1
        if self._reads < 0:
            raise BadStudyError("the header has too many elements")
        return super().read(size)


def transfer_syntax(content: bytes) -> uid.UID | None:
    """Return the transfer syntax that the meta header names; None if it names none, or if there is no meta header.

    Nothing after the meta header is read, because a deflated file would inflate without bound.
    """
    meta = _read_meta(_BoundedFile(content))
    value = meta.get("TransferSyntaxUID")
    return uid.UID(str(value)) if value else None


def read_header(content: bytes) -> pydicom.Dataset:
    """Parse a DICOM file, with or without its preamble and meta header.

    If the meta header names no transfer syntax, the file is read as uncompressed, as dcmtk does; the first element
    tells its byte order and whether it states its value representations.
    """
    dataset = pydicom.dcmread(_BoundedFile(content), force=True)
    if not dataset.file_meta.get("TransferSyntaxUID"):
        dataset.file_meta.TransferSyntaxUID = _guessed_syntax(dataset)
    return dataset


def _read_meta(file: io.BytesIO) -> FileMetaDataset:
    read_preamble(file, force=True)
    meta = read_dataset(file, is_implicit_VR=False, is_little_endian=True, stop_when=lambda tag, *_: tag >> 16 != 2)
    return FileMetaDataset(meta)


def _guessed_syntax(dataset: pydicom.Dataset) -> uid.UID:
    implicit, little = dataset.original_encoding
    if implicit:
        return uid.ImplicitVRLittleEndian
    return uid.ExplicitVRLittleEndian if little else uid.ExplicitVRBigEndian


def optional(dataset: pydicom.Dataset, keyword: str) -> Any:
    """Return the value of an element that a file need not have; None if it is absent, empty, too long or unreadable."""
    if _length(dataset, keyword) > _MOST_VALUE_BYTES:
        return None
    try:
        value = dataset.get(keyword)
    except Exception:  # noqa: BLE001 - a parser of hostile bytes fails in any way
        return None
    return None if value is None or value == "" else value


def numbers(dataset: pydicom.Dataset, keyword: str) -> list[float]:
    """Return the numbers of an optional element; an empty list if one of them is not a finite number."""
    value = optional(dataset, keyword)
    values = [] if value is None else value if isinstance(value, (list, pydicom.multival.MultiValue)) else [value]
    try:
        values_read = [float(one) for one in values]
    except (TypeError, ValueError):
        return []
    return values_read if all(math.isfinite(one) for one in values_read) else []


def whole_number(dataset: pydicom.Dataset, keyword: str) -> int | None:
    """Return the only whole number of an optional element; None if there is none, or more than one."""
    values = numbers(dataset, keyword)
    return int(values[0]) if len(values) == 1 and values[0] == int(values[0]) else None


def items(dataset: pydicom.Dataset, keyword: str) -> list[pydicom.Dataset]:
    """Return the items of an optional sequence.

    Raises:
        BadStudyError: the sequence is longer than any that a radiograph needs.
    """
    if _length(dataset, keyword) > _MOST_SEQUENCE_BYTES:
        raise BadStudyError(f"{keyword} is longer than {_MOST_SEQUENCE_BYTES} bytes")
    return list(dataset.get(keyword) or [])


def _length(dataset: pydicom.Dataset, keyword: str) -> int:
    """Return the number of bytes of an element that pydicom has not parsed yet; 0 if it is absent or parsed."""
    tag = pydicom.datadict.tag_for_keyword(keyword)
    assert tag is not None
    element = dataset.get_item(tag)
    if isinstance(element, pydicom.dataelem.RawDataElement) and element.value is not None:
        return len(element.value)
    return 0
