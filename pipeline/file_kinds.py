"""Recognition of a file's kind by its first bytes: DICOM, or another kind that is named in plain words."""

import re
import struct

# The number of bytes of a file that are examined.
HEAD_BYTES = 1024

_DICOM, _DICOMDIR = "a DICOM file", "a DICOM directory (DICOMDIR)"
_DIRECTORY_CLASS = b"1.2.840.10008.1.3.10"

# Offset in the file, the bytes there, and the kind that has them.
_MAGIC: tuple[tuple[int, bytes, str], ...] = (
    (0, b"\x89PNG\r\n\x1a\n", "a PNG image"),
    (0, b"\xff\xd8\xff", "a JPEG image"),
    (0, b"\xff\x4f\xff\x51", "a JPEG 2000 image"),
    (0, b"\x00\x00\x00\x0cjP  \r\n", "a JPEG 2000 image"),
    (0, b"GIF8", "a GIF image"),
    (0, b"II*\x00", "a TIFF image"),
    (0, b"MM\x00*", "a TIFF image"),
    (8, b"WEBP", "a WebP image"),
    (0, b"%PDF-", "a PDF document"),
    (0, b"PK\x03\x04", "a zip archive"),
    (0, b"PK\x05\x06", "an empty zip archive"),
    (0, b"\x1f\x8b", "gzip-compressed data"),
    (4, b"1AY&SY", "bzip2-compressed data"),
    (0, b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an Office document"),
    (0, b"PAR1", "a Parquet file"),
    (0, b"\xfd7zXZ\x00", "xz-compressed data"),
    (0, b"\x28\xb5\x2f\xfd", "zstd-compressed data"),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (0, b"Rar!\x1a\x07", "a RAR archive"),
    (257, b"ustar", "a tar archive"),
    (344, b"n+1\x00", "a NIfTI image"),
    (344, b"ni1\x00", "a NIfTI header"),
    (4, b"n+2\x00", "a NIfTI image"),
    (0, b"NRRD000", "an NRRD image"),
    (0, b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
    (0, b"\x93NUMPY", "a NumPy array"),
    (0, b"SQLite format 3\x00", "an SQLite database"),
    (0, b"\x7fELF", "a program"),
    (0, b"\x00\x05\x16\x07", "a macOS resource file"),
    (4, b"ftyp", "a video or HEIF file"),
    (0, b"version https://git-lfs.github.com/", "a Git LFS pointer (the file itself was never fetched)"),
)
_TEXT_KINDS: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"(?:<\?xml[^>]*>\s*|<!--.*?-->\s*)*<(?:!doctype\s+html|html|head|body|title)\b", re.I | re.S),
     "an HTML page"),
    (re.compile(r"<\?xml|<[a-z][\w:-]*[\s>/]", re.I), "an XML file"),
    (re.compile(r"[{\[]\s*[\"{\[\]}\d]"), "a JSON file"),
    (re.compile(r"#!"), "a script"),
    (re.compile(r"(?:ObjectType|NDims)\s*="), "a MetaImage header"),
)  # fmt: skip

# PS3.5, 6.2: a value representation defines how an element of the header is read.
_VALUE_REPRESENTATIONS = frozenset(
    b"AE AS AT CS DA DS DT FD FL IS LO LT OB OD OF OL OV OW PN SH SL SQ SS ST SV TM UC UI UL UN UR US UT UV".split()
)
_LONG_LENGTH = frozenset(b"OB OD OF OL OV OW SQ SV UC UN UR UT UV".split())
_FIRST_GROUPS = (0x0002, 0x0008)
# The first elements of a header are short: character sets, dates, identifiers.
_LONGEST_FIRST_VALUE = 1024


def is_dicom(head: bytes) -> bool:
    """Tell whether a file that begins with ``head`` is DICOM: it has the magic, or begins with a readable header.

    A header without the preamble and the magic is read as dcmtk reads it: group 0002 or 0008 first, little or big
    endian, with or without value representations.
    """
    return head[128:132] == b"DICM" or any(_begins_with_elements(head, order) for order in ("<", ">"))


def file_kind(head: bytes) -> str:
    """Name the kind of a file by its first ``HEAD_BYTES`` bytes, with its article: "an HTML page"."""
    if not head:
        return "an empty file"
    if is_dicom(head):
        return _DICOMDIR if _DIRECTORY_CLASS in head else _DICOM
    if not head.strip(b"\0"):
        return "a file of zero bytes only"
    if head.startswith(b"BM") and head[6:10] == bytes(4):  # the two letters alone may begin a text
        return "a BMP image"
    for offset, magic, kind in _MAGIC:
        if head.startswith(magic, offset):
            return kind
    return _text_kind(head) or "a file of an unknown kind"


def is_dicomdir(head: bytes) -> bool:
    """Tell whether the file lists other DICOM files and has no image."""
    return file_kind(head) == _DICOMDIR


def _text_kind(head: bytes) -> str:
    text = _as_text(head)
    if text is None:
        return ""
    start = text.lstrip("\ufeff \t\r\n")
    return next((kind for pattern, kind in _TEXT_KINDS if pattern.match(start)), "a text file")


def _as_text(head: bytes) -> str | None:
    """Return the bytes as text; None if they hold bytes that no text holds."""
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        return head[: len(head) // 2 * 2].decode("utf-16", errors="replace")
    if re.search(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f]", head):
        return None
    try:
        # The last character may be cut in two.
        return head.decode("utf-8") if len(head) < HEAD_BYTES else head[:-3].decode("utf-8", errors="ignore")
    except UnicodeDecodeError:
        return head.decode("latin-1")


def _begins_with_elements(head: bytes, order: str) -> bool:
    """Tell whether two elements of a header follow each other from the first byte on."""
    first = _element(head, order)
    if first is None or first[0] >> 16 not in _FIRST_GROUPS:
        return False
    tag, length = first
    second = _element(head[length:], order)
    # The file, or the part that was read, may end before the second element.
    return len(head) < length + 8 or (second is not None and tag < second[0] <= 0x00100000 | 0xFFFF)


def _element(head: bytes, order: str) -> tuple[int, int] | None:
    """Return tag and total length in bytes of the element at the start; None if there is none of plausible length."""
    if len(head) < 8:
        return None
    group, number = struct.unpack(f"{order}HH", head[:4])
    start, representation = 8, head[4:6]
    if representation in _LONG_LENGTH and len(head) >= 12:
        start, size = 12, struct.unpack(f"{order}I", head[8:12])[0]
    elif representation in _VALUE_REPRESENTATIONS:
        size = struct.unpack(f"{order}H", head[6:8])[0]
    else:
        size = struct.unpack(f"{order}I", head[4:8])[0]
    if size > _LONGEST_FIRST_VALUE or size % 2 or (number == 0 and size != 4):
        return None
    return group << 16 | number, start + size
