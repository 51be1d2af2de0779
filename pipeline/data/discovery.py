"""Search for the images of a folder by their content, DICOM, PNG or JPEG; other files are listed with their kind."""

import os
import stat
from collections import Counter, deque
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.dicom.pictures import is_picture
from pipeline.errors import UserError
from pipeline.escaping import printable
from pipeline.file_kinds import HEAD_BYTES, file_kind, is_dicom, is_dicomdir

__all__ = [
    "Listing", "by_study", "file_kind", "image_files", "is_dicom", "list_folder", "read_head", "study_name",
]  # fmt: skip

# A name with one of these suffixes claims to be a DICOM file, whatever its content.
_SUFFIXES = frozenset({".dcm", ".dicom", ".dic", ".dc3", ".ima"})
_PICTURE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg"})
NO_IMAGES = "no DICOM, PNG or JPEG files"


@dataclass
class Listing:
    """The content of a folder and its subfolders, sorted by path; hidden entries and DICOMDIR are left out.

    Attributes:
        files: DICOM files, by content, and pictures with the name of one.
        pictures: PNG and JPEG files, by content.
        misnamed: files with the name of a DICOM file but other content, each with its kind.
        others: all other files, each with its kind.
        odd: entries that could not be examined (not a regular file, unreadable, a loop), each with the reason.
    """

    files: list[Path] = field(default_factory=list)
    pictures: list[Path] = field(default_factory=list)
    misnamed: dict[Path, str] = field(default_factory=dict)
    others: dict[Path, str] = field(default_factory=dict)
    odd: dict[Path, str] = field(default_factory=dict)

    def images(self) -> list[Path]:
        """Return the files to read: DICOM files, files named like them, and pictures if there is no DICOM file.

        Beside DICOM files, pictures are previews, screenshots or logos.
        """
        return sorted([*self.files, *self.misnamed, *([] if self.files else self.pictures)])

    def described(self) -> str:
        """Describe the content besides images, counted by kind."""
        kinds = Counter([*self.misnamed.values(), *self.others.values(), *self.odd.values()])
        shown = [kind if count == 1 else f"{count} times {kind}" for kind, count in kinds.most_common(6)]
        more = [f"{len(kinds) - 6} other kinds"] if len(kinds) > 6 else []
        return ", ".join([*shown, *more]) or "nothing"


def image_files(folder: Path) -> list[Path]:
    """Return the images of a folder and its subfolders, sorted, found by content whatever their names.

    Files with the name of a DICOM file but other content are listed too: the reader refuses them with a message.
    Entries that could not be examined are in ``list_folder(folder).odd``.

    Raises:
        UserError: there is no image; the message tells what is there.
    """
    listing = list_folder(folder)
    require_some(folder, listing)
    return listing.images()


def require_some(folder: Path, listing: Listing) -> None:
    """Refuse a folder without an image.

    Raises:
        UserError: there is none; the message tells what is in the folder instead.
    """
    if not listing.files and not listing.pictures:
        raise UserError(f"{printable(folder)}: {NO_IMAGES}; the folder contains: {listing.described()}")


def list_folder(folder: Path) -> Listing:
    """List each entry of a folder and its subfolders; an entry that cannot be read does not end the search.

    Links are followed, but no folder is listed twice, and only regular files are opened.
    """
    listing, seen = Listing(), set[tuple[int, int]]()
    # Linked folders come last, so that an entry with two paths is listed under its real one.
    waiting = deque([folder])
    while waiting:
        current = waiting.popleft()
        try:
            status = current.stat()
            if (status.st_dev, status.st_ino) in seen:
                listing.odd[current] = "a link to a folder that is listed already"
                continue
            seen.add((status.st_dev, status.st_ino))
            folders = [path for path in _entries(current) if not _add(path, listing)]
        except OSError as error:
            listing.odd[current] = _reason(error, "a folder")
            continue
        waiting.extendleft(path for path in reversed(folders) if not path.is_symlink())
        waiting.extend(path for path in folders if path.is_symlink())
    parts = (_sorted(one) for one in (listing.misnamed, listing.others, listing.odd))
    return Listing(sorted(listing.files), sorted(listing.pictures), *parts)


def _entries(folder: Path) -> Iterable[Path]:
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry in entries if not entry.name.startswith("."))
    return [folder / name for name in names if name.upper() != "DICOMDIR"]


def _add(path: Path, listing: Listing) -> bool:
    """Add the entry to the part of the listing where it belongs; return False for a folder."""
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            return False
        head = read_head(path)
    except OSError as error:
        listing.odd[path] = _reason(error, "a file")
        return True
    if is_dicom(head):
        if not is_dicomdir(head):
            listing.files.append(path)
    elif is_picture(head):
        # A picture with the name of a DICOM file is no preview.
        (listing.files if path.suffix.lower() in _SUFFIXES else listing.pictures).append(path)
    else:
        (listing.misnamed if path.suffix.lower() in _SUFFIXES else listing.others)[path] = file_kind(head)
    return True


def read_head(path: Path) -> bytes:
    """Read the first ``HEAD_BYTES`` bytes of a regular file; never wait for the other end of a pipe or device.

    Raises:
        OSError: the file cannot be read, or is not a regular file.
    """
    if not stat.S_ISREG(path.stat().st_mode):  # merely opening a device may have an effect
        raise OSError(None, _special_kind(path.stat().st_mode))
    # The file may have become a pipe since that check.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb", buffering=0) as file:
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode):
            raise OSError(None, _special_kind(mode))
        return file.read(HEAD_BYTES) or b""


def _special_kind(mode: int) -> str:
    kinds = ((stat.S_ISDIR, "a folder"), (stat.S_ISFIFO, "a pipe (FIFO)"), (stat.S_ISSOCK, "a socket"))
    return next((kind for holds, kind in kinds if holds(mode)), "a device")


def _reason(error: OSError, what: str) -> str:
    if error.errno is None:
        return str(error.strerror)
    return f"{what} that cannot be read ({os.strerror(error.errno)})"


def _sorted(entries: dict[Path, str]) -> dict[Path, str]:
    return dict(sorted(entries.items()))


def study_name(path: Path) -> str:
    """Return the study's name from its file: without the suffix of an image, but with every other part after a dot.

    A name may be a UID, such as ``1.2.840.99``, whose last number is not a suffix.
    """
    return path.stem if path.suffix.lower() in (*_SUFFIXES, *_PICTURE_SUFFIXES) else path.name


def by_study(files: Iterable[Path], ids: Collection[str], folder: Path) -> dict[str, list[Path]]:
    """Group files by the study id that names them, or a folder around them; others stand under their `study_name`.

    A file's name counts first, with any suffix or none; then that of each folder between it and ``folder``.
    """
    files_of: dict[str, list[Path]] = {}
    for path in files:
        around = [one.name for one in path.relative_to(folder).parents] if path.is_relative_to(folder) else []
        names = (study_name(path), path.name, path.stem, *around)
        files_of.setdefault(next((name for name in names if name in ids), names[0]), []).append(path)
    return files_of
