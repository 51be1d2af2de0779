"""Reading of a table's file as text, whatever its encoding and compression, up to a maximum size."""

import gzip
import io
import re
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from pipeline.errors import UserError
from pipeline.escaping import printable
from pipeline.file_kinds import HEAD_BYTES, file_kind

# Maximum size of an unpacked table. The label table of the challenge, with 26,684 studies, has 1.5 MB.
MAX_BYTES = 256 * 2**20

_TEXT_KINDS = ("a text file", "a script", "a file of an unknown kind")
_PACKED = (".gz", ".zip")


def table_exists(path: Path) -> bool:
    """Tell whether the table exists, plain or compressed."""
    return _file_of(path).exists()


def table_text(path: Path) -> tuple[Path, str]:
    """Return the file that holds the table, and its text.

    The file may be compressed with gzip or zip, whatever its name; if ``path`` does not exist, ``path.gz`` and
    ``path.zip`` are tried. UTF-8, UTF-16, UTF-32 and Windows's Latin-1 are told apart.

    Raises:
        FileNotFoundError: there is no such file.
        UserError: the file holds no text, or more than `MAX_BYTES`, or cannot be unpacked.
    """
    file = _file_of(path)
    content = _unpacked(file, _bounded(file))
    kind = file_kind(content[:HEAD_BYTES])
    if kind not in _TEXT_KINDS:
        raise UserError(f"{printable(file)}: not a CSV table but {kind}")
    text = _decoded(content)
    position = text.find("\0")
    if position >= 0:
        line = text.count("\n", 0, position) + 1
        raise UserError(f"{printable(file)} line {line}: not a CSV table: it has a zero byte, which no text has")
    return file, text


def _file_of(path: Path) -> Path:
    if path.exists():
        return path
    packed = [one for one in (path.with_name(path.name + suffix) for suffix in _PACKED) if one.exists()]
    if len(packed) > 1:
        raise UserError(f"{printable(packed[0])}: {packed[1].name} lies beside it; keep one of the two")
    return packed[0] if packed else path


def _bounded(file: Path) -> bytes:
    try:
        with file.open("rb") as stream:
            return _not_more(file, stream.read(MAX_BYTES + 1))
    except IsADirectoryError:
        raise UserError(f"{printable(file)}: a folder; a CSV table is needed") from None


def _not_more(file: Path, content: bytes) -> bytes:
    if len(content) > MAX_BYTES:
        raise UserError(f"{printable(file)}: more than {MAX_BYTES} bytes of text, the most that a table may have")
    return content


def _unpacked(file: Path, content: bytes) -> bytes:
    if not content.startswith((b"\x1f\x8b", b"PK")):
        return content
    try:
        if content.startswith(b"PK"):
            return _of_zip(file, content)
        return _not_more(file, gzip.GzipFile(fileobj=io.BytesIO(content)).read(MAX_BYTES + 1))
    # gzip and zipfile raise these for damaged data, an unknown compression method and a password.
    except (OSError, EOFError, zlib.error, zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
        raise UserError(f"{printable(file)}: cannot be unpacked ({type(error).__name__})") from None


def _of_zip(file: Path, content: bytes) -> bytes:
    """Return the content of the only table in a zip archive."""
    if not zipfile.is_zipfile(io.BytesIO(content)):
        return content  # text that begins with PK
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = [one for one in archive.infolist() if not one.is_dir() and not _hidden(one.filename)]
        if any(one.filename == "[Content_Types].xml" or one.filename == "mimetype" for one in members):
            raise UserError(f"{printable(file)}: a spreadsheet, not a CSV table; save it as CSV")
        if len(members) != 1:
            names = ", ".join(printable(one.filename, 40) for one in members[:3])
            raise UserError(f"{printable(file)}: has {len(members)} files ({names}); an archive of one table is needed")
        with archive.open(members[0]) as member:
            return _not_more(file, member.read(MAX_BYTES + 1))


def _hidden(name: str) -> bool:
    """Tell whether the member is hidden, such as those that macOS adds by itself."""
    parts = PurePosixPath(name).parts
    return parts[:1] == ("__MACOSX",) or any(part.startswith(".") for part in parts[-1:])


def _decoded(content: bytes) -> str:
    encoding = _wide_encoding(content)
    if encoding:
        return content.decode(encoding, errors="replace").lstrip("\ufeff")
    try:
        return content.decode("utf-8").lstrip("\ufeff")
    except UnicodeDecodeError:
        # Any bytes are valid Latin-1; Windows's variant has quotes and dashes in place of control characters.
        return content.decode("latin-1" if re.search(rb"[\x81\x8d\x8f\x90\x9d]", content) else "cp1252")


def _wide_encoding(content: bytes) -> str:
    """Return UTF-32 or UTF-16, by byte order mark or, for UTF-16, by zero bytes of ASCII characters; else no name."""
    if content.startswith((b"\xff\xfe\0\0", b"\0\0\xfe\xff")):
        return "utf-32"
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "utf-16"
    head = content[:HEAD_BYTES]
    even, odd = head[::2].count(0), head[1::2].count(0)
    if max(even, odd) * 4 > len(head) and min(even, odd) == 0:
        return "utf-16-be" if even else "utf-16-le"
    return ""
