"""DVC's lock on files, ``.dvc/tmp/rwlock``: its holders, and the removal of entries whose process is gone."""

import contextlib
import fcntl
import json
import logging
import os
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from pipeline.files import write_text
from pipeline.folder_lock import BusyError

logger = logging.getLogger(__name__)

_ENTRIES = Path(".dvc/tmp/rwlock")
_BUSY = re.compile(r"(?:ERROR: )?(?P<what>.*) is busy, it is being blocked by:$")
_LOCKED = "Unable to acquire lock"
_HOLDER = re.compile(r"\s*\(PID (?P<pid>\d+)\): (?P<command>.*)")


def release_dead() -> None:
    """Remove the entries of processes that are gone.

    DVC does this itself, but only if no other process has the same process id. After a restart of the machine
    another process often has it, and DVC asks the user to remove the file.
    """
    if not _ENTRIES.exists():
        return
    with _guard():
        try:
            entries: dict[str, Any] = json.loads(_ENTRIES.read_text(encoding="utf-8"))
            kept = {
                "write": {path: one for path, one in entries.get("write", {}).items() if _lives(one)},
                "read": {path: [one for one in some if _lives(one)] for path, some in entries.get("read", {}).items()},
            }
        except (ValueError, TypeError, KeyError, AttributeError):
            logger.warning("%s: damaged, which stops every dvc command; removed", _ENTRIES)
            _ENTRIES.unlink()
            return
        kept["read"] = {path: some for path, some in kept["read"].items() if some}
        if kept != {"write": {}, "read": {}} | entries:
            logger.warning("%s: entries of processes that are gone; removed", _ENTRIES)
            write_text(_ENTRIES, json.dumps(kept))


def require_free(lines: list[str]) -> None:
    """Raise a BusyError if the output of a ``dvc`` command says that another one is working on the same files."""
    if any(_LOCKED in line for line in lines):
        raise BusyError(
            f"{_ENTRIES.parent}: another `dvc` command holds the lock of this folder; wait for it or end it"
        )
    for number, line in enumerate(lines):
        if (busy := _BUSY.match(line)) and (holder := _HOLDER.match("".join(lines[number + 1 : number + 2]))):
            arguments = holder["command"].partition(" ")[2]
            raise BusyError(
                f"{busy['what']}: `dvc {arguments}` holds it: process {holder['pid']}, since"
                f" {_begin(int(holder['pid']))}; wait for that command or end it"
            )


@contextlib.contextmanager
def _guard() -> Iterator[None]:
    """Hold DVC's own lock, which each of its commands takes while it changes the entries."""
    descriptor = os.open(f"{_ENTRIES}.lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _lives(holder: dict[str, Any]) -> bool:
    """Return whether the process that took an entry still runs under its process id.

    Only the arguments are compared, because the program's own name is written differently.
    """
    arguments = str(holder["cmd"]).partition(" ")[2]
    try:
        return " ".join(psutil.Process(int(holder["pid"])).cmdline()).endswith(arguments)
    except psutil.NoSuchProcess:  # includes a zombie process
        return False
    except psutil.AccessDenied:
        return True


def _begin(pid: int) -> str:
    try:
        begin = psutil.Process(pid).create_time()
    except psutil.NoSuchProcess:
        return "a moment ago"
    return datetime.fromtimestamp(begin, UTC).isoformat(timespec="seconds")
