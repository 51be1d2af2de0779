"""Write files whole or not at all: in a temporary folder beside the target, fsync, rename.

A temporary folder is locked by the process that made it, and the system drops the lock when that process ends,
however it ends. The next process that writes to the same place can therefore recognise what a killed one left behind,
and removes only that, even if the two have different process tables or clocks (containers, a shared disk).
"""

import errno
import fcntl
import hashlib
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

# A disk with less free space counts as full, because file systems keep some for themselves.
_FULL_BYTES = 2**20
# The wording of a system error in Rust libraries (safetensors).
_RUST_ERROR = re.compile(r"\(os error (\d+)\)")
_PREFIX, _SUFFIX = ".pneumoflow-", ".tmp"
# The mode of files that name or show a person: only their owner can read them.
PRIVATE = 0o600


def write_atomic(path: Path, write: Callable[[Path], object], *, private: bool = False) -> None:
    """Let ``write`` fill a temporary file, then rename it to ``path``; ``private``: only the owner can read it.

    Raises:
        OSError: names ``path``, also if the disk is full and ``write`` raised another error.
    """
    with _replacing(path) as folder:
        temporary = folder / path.name
        write(temporary)
        _put(temporary, path, private)


@contextmanager
def open_atomic(path: Path, *, private: bool = False) -> Iterator[TextIO]:
    """Yield a text file that takes the name ``path`` at the end of the block; after an error it is removed.

    File names of any bytes can be written to it: characters that UTF-8 does not have are escaped.
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
    """Make write errors name the file to be written; C++ libraries hide a full disk behind errors of their own."""
    try:
        yield
    except OSError as error:
        if error.filename is not None and _PREFIX not in str(error.filename):
            raise
        if error.errno is not None:
            raise OSError(error.errno, error.strerror, str(path)) from error
        if _is_full(path.parent):  # numpy says how many bytes it has written, but not the reason
            raise _no_space(path) from error
        raise OSError(errno.EIO, str(error), str(path)) from error
    except Exception as error:
        if named := _RUST_ERROR.search(str(error)):
            raise OSError(int(named[1]), os.strerror(int(named[1])), str(path)) from error
        if isinstance(error, ValueError) or not _is_full(path.parent):
            raise
        raise _no_space(path) from error


def _is_full(folder: Path) -> bool:
    return shutil.disk_usage(folder).free < _FULL_BYTES


def _no_space(path: Path) -> OSError:
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_text(path: Path, text: str) -> None:
    """Write ``text`` as UTF-8, whole or not at all."""
    write_atomic(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON, whole or not at all."""
    write_text(path, json_text(value))


def json_text(value: Any) -> str:
    """Return ``value`` as indented JSON; a NaN, which JSON does not have, is an error."""
    return json.dumps(value, indent=2, allow_nan=False) + "\n"


@contextmanager
def directory_atomic(path: Path) -> Iterator[Path]:
    """Yield an empty folder; on success it replaces the folder ``path``, on failure it is removed.

    Raises:
        OSError: names ``path``, also if ``path`` is not a folder.
    """
    with _replacing(path) as folder:
        made = folder / "new"
        made.mkdir()
        yield made
        if path.exists() and not path.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path))
        _swap(made, path, folder / "former")


def _swap(made: Path, path: Path, former: Path) -> None:
    """Replace ``path``, which is never half a folder; a signal between the two steps restores the former one."""
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
    """Yield a new folder in ``parent`` (by default ``TMPDIR``) that only the owner can read; remove it after the block.

    After a kill, the next process that makes such a folder there removes it.
    """
    folder_above = Path(tempfile.gettempdir()) if parent is None else parent
    _clear_once(folder_above.resolve())
    path, lock = _locked_folder(folder_above)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        os.close(lock)


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary folder beside ``path``, for the content that takes its name; see `_named_errors`."""
    with _named_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        # Inside too, because a full disk can be seen only as long as the written content is there.
        with temporary_folder(path.parent) as folder, _named_errors(path):
            yield folder


def _locked_folder(parent: Path) -> tuple[Path, int]:
    """Return a new folder and the descriptor that holds its lock; unlocked if the file system has no locks."""
    while True:
        path = Path(tempfile.mkdtemp(prefix=_PREFIX, suffix=_SUFFIX, dir=parent))
        with suppress(FileNotFoundError):  # removed by another process before it was locked
            lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
            if lock_descriptor(lock) is not False and path.exists():
                return path, lock
            os.close(lock)


def lock_descriptor(descriptor: int, *, shared: bool = False) -> bool | None:
    """Lock an open file or folder until the descriptor is closed or the process ends.

    Returns:
        False if another process holds the lock, None if the file system has no locks.
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
    """Remove leftovers once per process and folder: a folder of thousands of pictures is not searched for each one."""
    for path in parent.glob(f"{_PREFIX}*{_SUFFIX}"):
        remove_unlocked(path)


def remove_unlocked(path: Path) -> bool:
    """Remove a folder unless a living process holds its lock; return whether it is gone.

    If the file system has no locks the folder stays, because nothing shows that its process has ended.
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
