"""Sizes and SHA-256 digests of prepared data: the preparation writes them last, and readers check them.

The sizes of all files and the digests of the tables are checked whenever the data are opened: that takes
milliseconds, and finds files that are cut off, missing or of another run. The digests of the shards are checked
where their images are about to be used: nothing else finds a block of zeros, or two swapped shards.
"""

import hashlib
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipeline.bounds import CHECKED
from pipeline.documents import first_problem, read_json_object
from pipeline.errors import UserError
from pipeline.files import sha256_of, write_json

MANIFEST = "manifest.json"
REBUILD = "run `dvc repro` to prepare the data anew"
_FORMAT = 1

# Other names are refused, so that no path is built from arbitrary text in a file.
FileName = Annotated[str, Field(pattern=r"^(index\.csv|boxes\.csv|images-\d{5,9}\.npy)$")]


class Entry(BaseModel):
    """Size and digest of a file as it was written."""

    model_config = ConfigDict(frozen=True, **CHECKED)

    bytes: Annotated[int, Field(ge=0)]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Manifest(BaseModel):
    """The contents of ``manifest.json``: the name of each other file -> its size and digest."""

    model_config = ConfigDict(frozen=True, **CHECKED)

    format: Literal[1]
    files: dict[FileName, Entry]


def write_manifest(folder: Path) -> None:
    """Record every file of ``folder``; the same files give the same bytes."""
    paths = sorted(path for path in folder.iterdir() if path.name != MANIFEST)
    entries = {
        path.name: {"bytes": path.stat().st_size, "sha256": digest}
        for path, digest in zip(paths, _digests(paths), strict=True)
    }
    write_json(folder / MANIFEST, {"format": _FORMAT, "files": entries})


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest, and check that every file that it names has the recorded size.

    Raises:
        UserError: the manifest is missing or damaged, or a file is missing or has another size.
    """
    path = folder / MANIFEST
    try:
        manifest = Manifest.model_validate(read_json_object(path))
    except FileNotFoundError:
        raise UserError(
            f"{path}: no such file; these data are incomplete, or an older version wrote them; {REBUILD}"
        ) from None
    except ValidationError as error:
        raise UserError(f"{path}: {first_problem(error)}; {REBUILD}") from None
    except UserError as error:
        raise UserError(f"{error}; {REBUILD}") from None
    for name, entry in manifest.files.items():
        _require_size(folder / name, entry)
    return manifest


def _require_size(path: Path, entry: Entry) -> None:
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        raise UserError(f"{path}: no such file, but {MANIFEST} names it; {REBUILD}") from None
    if size != entry.bytes:
        raise UserError(f"{path}: has {size} bytes, must have {entry.bytes} ({MANIFEST}); {REBUILD}")


def read_table(folder: Path, name: str, manifest: Manifest) -> bytes:
    """Return the bytes of a table, and check that they are as written.

    Raises:
        UserError: they are not, or the manifest does not name the table.
    """
    path = folder / name
    if name not in manifest.files:
        raise UserError(f"{path}: {MANIFEST} does not name it; {REBUILD}")
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != manifest.files[name].sha256:
        raise _changed(path)
    return content


def require_digests(folder: Path, names: Iterable[str], manifest: Manifest) -> None:
    """Check the digests of files; read them from end to end, as many at once as there are cores.

    Raises:
        UserError: a file is not as it was written.
    """
    paths = [folder / name for name in names]
    for path, digest in zip(paths, _digests(paths), strict=True):
        if digest != manifest.files[path.name].sha256:
            raise _changed(path)


def _changed(path: Path) -> UserError:
    return UserError(f"{path}: differs from the file that was written (SHA-256 in {MANIFEST}); {REBUILD}")


def _digests(paths: list[Path]) -> list[str]:
    # Threads are enough: hashing releases Python's global interpreter lock.
    with ThreadPoolExecutor(os.cpu_count() or 1) as threads:
        return list(threads.map(sha256_of, paths))
