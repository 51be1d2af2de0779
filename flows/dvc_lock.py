"""DVC's lock on files, ``.dvc/tmp/rwlock``: who holds it, and entries of processes that are gone."""

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
_HOLDER = re.compile(r"\s*\(PID (?P<pid>\d+)\): (?P<command>.*)")


def release_dead() -> None:
    """Drop the entries of processes that are gone.

    DVC does so itself, but only as long as no other process has the number: after a restart of the machine
    one often has, and DVC asks the user to remove the file.
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
    """Raise a BusyError if the output of a ``dvc`` command says that another one is at work on the same files."""
    for number, line in enumerate(lines):
        if (busy := _BUSY.match(line)) and (holder := _HOLDER.match("".join(lines[number + 1 : number + 2]))):
            arguments = holder["command"].partition(" ")[2]
            raise BusyError(
                f"{busy['what']}: `dvc {arguments}` holds it: process {holder['pid']}, since"
                f" {_begin(int(holder['pid']))}; wait for that command or end it"
            )


@contextlib.contextmanager
def _guard() -> Iterator[None]:
    """DVC's own lock, which each of its commands takes for the moment in which it changes the entries."""
    descriptor = os.open(f"{_ENTRIES}.lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _lives(holder: dict[str, Any]) -> bool:
    """Whether the process that took an entry still has its number; the program's own name is written differently."""
    arguments = str(holder["cmd"]).partition(" ")[2]
    try:
        return " ".join(psutil.Process(int(holder["pid"])).cmdline()).endswith(arguments)
    except psutil.NoSuchProcess:  # a zombie is one too
        return False
    except psutil.AccessDenied:
        return True


def _begin(pid: int) -> str:
    try:
        begin = psutil.Process(pid).create_time()
    except psutil.NoSuchProcess:
        return "a moment ago"
    return datetime.fromtimestamp(begin, UTC).isoformat(timespec="seconds")
