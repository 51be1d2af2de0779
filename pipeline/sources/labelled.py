"""The form that every format is read into: images, boxes, and facts about the studies.

Each format has a module here that reads it. Coordinates become x, y (top left), width and height in pixels.
"""

import re
import struct
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import NamedTuple

from pipeline.data.discovery import list_folder, study_name
from pipeline.dicom.codestream import read_jpeg
from pipeline.dicom.header import read_header
from pipeline.dicom.pictures import is_picture
from pipeline.errors import BadStudyError, UserError
from pipeline.escaping import printable, quoted

# Annotators draw to the edge, and some formats round.
ROUNDING = 1.0
_NOT_PLAIN = re.compile(r"[^A-Za-z0-9._-]+")
_MOST = 120


class Box(NamedTuple):
    """One reader's box on an image, in pixels; ``reader`` may be empty."""

    image: Path
    x: float
    y: float
    width: float
    height: float
    name: str
    reader: str = ""


@dataclass
class Labelled:
    """A labelled data set.

    Attributes:
        images: the image files, in the order of the source.
        boxes: in the order of the source.
        splits: image -> the split that the source gives it.
        patients: image -> its patient.
        facts: image -> ``view``, ``sex``, ``age``, ``spacing`` as texts, those that are known.
        unlabelled: images that the source does not mention.
        notes: what was changed or left out -> how often.
    """

    images: list[Path] = field(default_factory=list)
    boxes: list[Box] = field(default_factory=list)
    splits: dict[Path, str] = field(default_factory=dict)
    patients: dict[Path, str] = field(default_factory=dict)
    facts: dict[Path, dict[str, str]] = field(default_factory=dict)
    unlabelled: list[Path] = field(default_factory=list)
    notes: Counter[str] = field(default_factory=Counter)


class Images:
    """The image files of a folder, looked up by the names that a label file gives them: no path is built from data.

    Args:
        folder: the folder.
        studies: study -> its image, for images that go by a study's name too; no other image is found then.
    """

    def __init__(self, folder: Path, studies: Mapping[str, Path] | None = None) -> None:
        listing = list_folder(folder) if studies is None else None
        self.folder = folder
        self.files = sorted([*listing.files, *listing.pictures] if listing else (studies or {}).values())
        self._by_name: dict[str, list[Path]] = {name: [path] for name, path in (studies or {}).items()}
        for path in self.files if studies is None else []:
            for name in {path.name, study_name(path), path.relative_to(folder).as_posix()}:
                self._by_name.setdefault(name, []).append(path)

    def find(self, name: str, place: str) -> Path:
        """Return the file that a label file calls ``name``, a path or the last part of one, with or without its suffix.

        Raises:
            UserError: there is none, or there are several; the message names ``place``.
        """
        parts = name.replace("\\", "/").split("/")
        # The longest end of the path that is there decides.
        for start in range(len(parts)):
            found = self._by_name.get("/".join(parts[start:]))
            if found is None:
                continue
            if len(found) > 1:
                raise UserError(f"{place}: image {quoted(name)}: {len(found)} files have this name, such as"
                                f" {printable(found[0])} and {printable(found[1])}")  # fmt: skip
            return found[0]
        stem = study_name(Path(parts[-1]))
        found = self._by_name.get(stem, [])
        if len(found) == 1:
            return found[0]
        what = "no such file" if not found else f"{len(found)} files have this name"
        raise UserError(f"{place}: image {quoted(name)}: {what} in {printable(self.folder)}")


@cache
def image_size(path: Path) -> tuple[int, int]:
    """Return the width and height of an image from its header.

    Raises:
        UserError: the header cannot be read.
    """
    try:
        content = path.read_bytes()
        if not is_picture(content):
            header = read_header(content)
            return int(header.Columns), int(header.Rows)
        if content.startswith(b"\x89PNG"):
            width, height = struct.unpack(">II", content[16:24])
            return width, height
        rows, columns, _ = read_jpeg(content).size
    except (OSError, BadStudyError, AttributeError, TypeError, ValueError, struct.error) as error:
        raise UserError(f"{printable(path)}: its size cannot be read ({type(error).__name__})") from None
    return columns, rows


def inside(box: Box, size: tuple[int, int], place: str, notes: Counter[str]) -> Box:
    """Return the box, cut at the image's edges if it exceeds them by rounding.

    Raises:
        UserError: it has no area, or reaches further outside.
    """
    width, height = size
    shown = f"{box.x:.6g} {box.y:.6g} {box.width:.6g} {box.height:.6g}"
    if not (box.width > 0 and box.height > 0):
        raise UserError(f"{place}: box {shown} (x y width height): width and height must be above 0")
    low_x, low_y, high_x, high_y = box.x, box.y, box.x + box.width, box.y + box.height
    if min(low_x, low_y) < -ROUNDING or high_x > width + ROUNDING or high_y > height + ROUNDING:
        rule = f"reaches outside the image of {width} x {height}"
        raise UserError(f"{place}: box {shown} (x y width height) {rule}")
    if low_x >= 0 and low_y >= 0 and high_x <= width and high_y <= height:
        return box
    notes[f"boxes cut at the image's edge, by at most {ROUNDING:g} pixel"] += 1
    low_x, low_y, high_x, high_y = max(low_x, 0), max(low_y, 0), min(high_x, width), min(high_y, height)
    return box._replace(x=low_x, y=low_y, width=high_x - low_x, height=high_y - low_y)


def number(value: object, place: str, what: str) -> float:
    """Return a number of a label file, which may be written as a text.

    Raises:
        UserError: it is none, or not finite.
    """
    try:
        if isinstance(value, bool):
            raise ValueError
        found = float(str(value))
    except ValueError:
        found = float("nan")
    if not abs(found) < 1e9:
        raise UserError(f"{place}: {what} = {quoted(value)}: must be a number")
    return found


def study_ids(images: Iterable[Path], notes: Counter[str]) -> Mapping[Path, str]:
    """Return a study's id for each image: its name, with '_' for all that an id may not have.

    Raises:
        UserError: two images would have one id.
    """
    ids: dict[Path, str] = {}
    owner: dict[str, Path] = {}
    for path in images:
        name = study_name(path)
        plain = _NOT_PLAIN.sub("_", name).strip("._-")[:_MOST] or "image"
        if plain != name:
            notes["names changed, because an id has letters, digits, '.', '_' and '-' only"] += 1
        if plain in owner:
            both = f"{printable(owner[plain])} and {printable(path)}"
            raise UserError(f"{both}: both would be study {plain}; rename one of them")
        owner[plain] = path
        ids[path] = plain
    return ids
