"""Write files whole or not at all: in a temporary folder beside the target, fsync, rename.

A temporary folder is locked by the process that made it, and the system drops the lock when that process ends,
however it ends. So the next process that writes to the same place can tell what a killed one left behind, and
removes that alone, also where the two have different process tables or clocks (containers, a shared disk).
"""

import errno
import fcntl
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, TextIO

# A disk with less is as good as full: file systems keep some for themselves.
_FULL_BYTES = 2**20
# How libraries in Rust (safetensors) word an error of the system.
_RUST_ERROR = re.compile(r"\(os error (\d+)\)")
_PREFIX, _SUFFIX = ".pneumoflow-", ".tmp"
# Of files that name a person, or show one: nobody but their owner reads them.
PRIVATE = 0o600


def write_atomic(path: Path, write: Callable[[Path], object], *, private: bool = False) -> None:
    """Let ``write`` fill a temporary file, then rename it to ``path``; ``private``: only the owner can read it.

    Raises:
        OSError: with the name of ``path``, also when the disk is full and ``write`` said something else.
    """
    with _replacing(path) as folder:
        temporary = folder / path.name
        write(temporary)
        _put(temporary, path, private)


@contextmanager
def open_atomic(path: Path, *, private: bool = False) -> Iterator[TextIO]:
    """A text file that takes the name ``path`` at the end of the block; after an error there is none.

    Names of any bytes can be written to it: what UTF-8 does not have is escaped.
    """
    with _replacing(path) as folder:
        temporary = folder / path.name
        with temporary.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
            yield file
        _put(temporary, path, private)


def _put(temporary: Path, path: Path, private: bool) -> None:
    if private:
        temporary.chmod(PRIVATE)
    sync_file(temporary)
    temporary.replace(path)


def sync_file(path: Path) -> None:
    """Wait until the file's bytes are on the disk."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


@contextmanager
def _named_errors(path: Path) -> Iterator[None]:
    """Errors of writing name the file that was to be written; libraries in C++ hide a full disk behind their own."""
    try:
        yield
    except OSError as error:
        if error.filename is not None and _PREFIX not in str(error.filename):
            raise
        if error.errno is not None:
            raise OSError(error.errno, error.strerror, str(path)) from error
        if _is_full(path.parent):  # numpy says how many bytes it has written, and not why
            raise _no_space(path) from error
        raise OSError(errno.EIO, str(error), str(path)) from error
    except Exception as error:
        if found := _RUST_ERROR.search(str(error)):
            raise OSError(int(found[1]), os.strerror(int(found[1])), str(path)) from error
        if isinstance(error, ValueError) or not _is_full(path.parent):
            raise
        raise _no_space(path) from error


def _is_full(folder: Path) -> bool:
    return shutil.disk_usage(folder).free < _FULL_BYTES


def _no_space(path: Path) -> OSError:
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


def write_text(path: Path, text: str) -> None:
    """Write ``text`` as UTF-8, whole or not at all."""
    write_atomic(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON, whole or not at all."""
    write_text(path, json_text(value))


def json_text(value: Any) -> str:
    """``value`` as indented JSON; a NaN, which JSON has not, is an error."""
    return json.dumps(value, indent=2, allow_nan=False) + "\n"


@contextmanager
def directory_atomic(path: Path) -> Iterator[Path]:
    """Yield an empty folder; on success it replaces the folder ``path``, on failure it goes.

    Raises:
        OSError: with the name of ``path``, also when it is no folder.
    """
    with _replacing(path) as folder:
        made = folder / "new"
        made.mkdir()
        yield made
        if path.exists() and not path.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path))
        _swap(made, path, folder / "former")


def _swap(made: Path, path: Path, former: Path) -> None:
    """At no time is half of a folder at ``path``; a signal between the two steps brings the former one back."""
    try:
        if path.exists():
            path.rename(former)
        made.rename(path)
    except BaseException:
        if former.exists() and not path.exists():
            former.rename(path)
        raise


@contextmanager
def temporary_folder(parent: Path | None = None) -> Iterator[Path]:
    """A new folder in ``parent`` (``TMPDIR`` without one) that only the owner can read; it goes after the block.

    After a kill it goes when the next process makes one there.
    """
    place = Path(tempfile.gettempdir()) if parent is None else parent
    _clear_once(place.resolve())
    path, lock = _locked_folder(place)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        os.close(lock)


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A temporary folder beside ``path``, for what will take its name; see `_named_errors`."""
    with _named_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        # Inside too: whether the disk is full can be seen as long as what was written is there.
        with temporary_folder(path.parent) as folder, _named_errors(path):
            yield folder


def _locked_folder(parent: Path) -> tuple[Path, int]:
    """A new folder, and the descriptor that holds its lock; unlocked where the file system has no locks."""
    while True:
        path = Path(tempfile.mkdtemp(prefix=_PREFIX, suffix=_SUFFIX, dir=parent))
        with suppress(FileNotFoundError):  # cleared by another process before it was locked
            lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
            if lock_descriptor(lock) is not False and path.exists():
                return path, lock
            os.close(lock)


def lock_descriptor(descriptor: int, *, shared: bool = False) -> bool | None:
    """Lock an open file or folder until the descriptor is closed or the process ends.

    Returns:
        False if another process holds it, None if the file system has no locks.
    """
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


@lru_cache(maxsize=256)
def _clear_once(parent: Path) -> None:
    """Once for each process and folder: a folder of thousands of pictures is not searched for each of them."""
    for path in parent.glob(f"{_PREFIX}*{_SUFFIX}"):
        remove_unlocked(path)


def remove_unlocked(path: Path) -> bool:
    """Remove a folder unless a living process holds its lock; returns whether it is gone.

    Where the file system has no locks it stays: who can say that its process has ended?
    """
    try:
        lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return False  # of another user, or gone already
    try:
        if lock_descriptor(lock):
            shutil.rmtree(path, ignore_errors=True)
    finally:
        os.close(lock)
    return not path.exists()
