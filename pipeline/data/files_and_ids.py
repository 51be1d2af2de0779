"""Comparison of the label table's ids with the files that exist."""

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path

from pipeline.data.data_issues import RULES, DataIssue
from pipeline.data.discovery import Listing, study_name
from pipeline.data.suggestions import likely_cause
from pipeline.escaping import printable, quoted

# Ids of a study stand near the start of its header.
_HEADER_BYTES = 2**14
_HEADERS_READ = 1000
_WORD = re.compile(rb"[A-Za-z0-9][A-Za-z0-9._-]*")
# Tags that may hold the id that a label table gives a study, little endian; the likeliest first.
_TAGS = {
    b"\x10\x00\x20\x00": "PatientID",
    b"\x08\x00\x18\x00": "SOPInstanceUID", b"\x02\x00\x03\x00": "SOPInstanceUID",
    b"\x08\x00\x50\x00": "AccessionNumber", b"\x10\x00\x10\x00": "PatientName",
    b"\x20\x00\x0d\x00": "StudyInstanceUID", b"\x20\x00\x0e\x00": "SeriesInstanceUID", b"\x20\x00\x10\x00": "StudyID",
}  # fmt: skip


def compare_files(ids: Sequence[str], files_of: Mapping[str, Sequence[Path]], listing: Listing) -> Iterator[DataIssue]:
    """Yield an issue for each study without a file, and for each file without a study.

    Args:
        ids: the ids of the label table.
        files_of: the files by the names of their studies, as `by_study` returns them.
        listing: the content of the folder.
    """
    known = set(ids)
    lacking = [key for key in ids if key not in files_of]
    unnamed = {name: files for name, files in files_of.items() if name not in known}
    hint = _hints(lacking, unnamed, listing)
    for key in lacking:
        yield DataIssue(RULES["image_there"], key, hint(key))
    for name in sorted(unnamed):
        yield DataIssue(RULES["label_there"], printable(name, 60))


def _hints(lacking: Sequence[str], unnamed: Mapping[str, Sequence[Path]], listing: Listing) -> Callable[[str], str]:
    """Return a function that gives, for a study's id, a hint about its missing file."""
    previews = dict.fromkeys(
        listing.pictures if listing.files else [], "a PNG or JPEG image, left out beside DICOM files"
    )
    unread = [*listing.others.items(), *listing.odd.items(), *previews.items()]
    other = {name: f"{quoted(path.name)} is {kind}" for path, kind in unread
             for name in (study_name(path), path.name, path.stem)}  # fmt: skip
    cause = likely_cause(lacking, unnamed.keys())
    files = [files[0] for files in unnamed.values()]
    header = "" if not lacking or cause(lacking[0]) else _header_hint(lacking, files)
    return lambda key: other.get(key) or cause(key) or header


def _header_hint(ids: Sequence[str], files: Sequence[Path]) -> str:
    """Return a hint if the ids are in the headers of files with other names, otherwise an empty text."""
    wanted = {key.encode() for key in ids}
    tags: Counter[str] = Counter()
    looked = files[:_HEADERS_READ]
    for path in looked:
        tags.update(_tags_of(path, wanted))
    # Several tags may hold the same id; max keeps the first.
    tag = max(_TAGS.values(), key=lambda one: tags[one])
    count = tags[tag]
    if not count or 2 * count < len(looked):
        return ""
    return f"{count} of {len(looked)} files have such an id as {tag} in their header; name each file by it"


def _tags_of(path: Path, ids: Collection[bytes]) -> set[str]:
    """Return the tags of a header whose value is one of the ids, without a parser, which a hostile file might stall."""
    try:
        with path.open("rb") as file:
            head = file.read(_HEADER_BYTES)
    except OSError:
        return set()  # reading the study reports this error
    # Before a value stand its tag (four bytes), and its representation and length (four bytes).
    starts = [match.start() for match in _WORD.finditer(head) if match[0] in ids]
    return {_TAGS[tag] for start in starts if (tag := head[start - 8 : start - 4]) in _TAGS}
