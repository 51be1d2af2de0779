"""Compare the label table's ids with the files that are there."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from pipeline.data.discovery import Listing
from pipeline.data.findings import RULES, Finding
from pipeline.escaping import printable


def compare_files(ids: Sequence[str], found: Mapping[str, Sequence[Path]], listing: Listing) -> Iterator[Finding]:
    """Studies without a file or with several, and files without a study.

    Args:
        ids: of the label table.
        found: the files by the names of their studies, as `by_study` gives them.
        listing: what is in the folder.
    """
    other = {name: (path, kind) for path, kind in [*listing.others.items(), *listing.odd.items()]
             for name in (path.name, path.stem)}  # fmt: skip
    for key in ids:
        files = found.get(key, [])
        if len(files) > 1:
            yield Finding(RULES["image_once"], key, ", ".join(printable(path.name, 60) for path in files[:3]))
        if not files:
            path, kind = other.get(key, (None, ""))
            yield Finding(RULES["image_there"], key, f"{printable(path.name, 60)} is {kind}" if path else "")
    for name in sorted(found.keys() - set(ids)):
        yield Finding(RULES["label_there"], printable(name, 60))
