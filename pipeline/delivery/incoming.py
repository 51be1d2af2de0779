"""Files that other programs may still write: tell when one has arrived, and read its bytes once, within bounds."""

import errno
import json
import os
import stat
import time
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.dicom.radiograph import MAX_FILE_BYTES
from pipeline.files import write_atomic

ARRIVING = ".arriving.json"


class StillArrivingError(OSError):
    """The file was changed while it was read."""


def read_regular(path: Path) -> bytes:
    """Read a regular file; if it is too large, read one byte more than is accepted.

    The call never waits for the other end of a pipe.

    Raises:
        StillArrivingError: the file was changed meanwhile.
        OSError: the file does not exist, cannot be read, or is not a regular file.
    """
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        before = os.fstat(file.fileno())
        if not stat.S_ISREG(before.st_mode):
            raise OSError(errno.EINVAL, "no regular file", str(path))
        content = file.read(MAX_FILE_BYTES + 1)
        after = os.fstat(file.fileno())
    whole = min(after.st_size, MAX_FILE_BYTES + 1)
    if _state(before) != _state(after) or len(content) != whole:
        raise StillArrivingError(errno.EAGAIN, "changed while it was read", str(path))
    return content


def _state(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_ino, status.st_size, status.st_mtime_ns


@dataclass
class _Sight:
    """A file as it was seen; ``since`` is a time of the monotonic clock, which runs from start-up and cannot be set."""

    state: tuple[int, int, int]
    since: float


@dataclass
class Arrivals:
    """A check of which files have arrived: those that did not change for ``settle_seconds``.

    In most cases a file's modification time decides. If it lies in the future (the sender's clock is ahead, or
    ours was set back), the system's own note of the last change (ctime) counts. If that lies in the future too,
    the state of the file at an earlier look counts, which is kept in ``note``.
    """

    settle_seconds: float
    note: Path
    _before: dict[str, _Sight] = field(init=False)
    _now: dict[str, _Sight] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self._before = _read(self.note)

    def has_arrived(self, path: Path) -> bool:
        """Return whether a file has arrived.

        Raises:
            OSError: the file does not exist, or its state cannot be read.
        """
        status = path.stat()
        if self._unchanged_since(status.st_mtime, status.st_ctime):
            return True
        # A name may hold any bytes: in hexadecimal digits, it cannot be escaped wrongly.
        key, now = os.fsencode(path).hex(), time.monotonic()
        before = self._before.get(key)
        if before is None or before.state != _state(status) or before.since > now:  # the machine was restarted since
            before = _Sight(_state(status), now)
        self._now[key] = before
        return now - before.since >= self.settle_seconds

    def _unchanged_since(self, changed: float, noted: float) -> bool:
        now = time.time()
        last = changed if changed <= now else noted
        return now - last >= self.settle_seconds

    def save(self) -> None:
        """Keep the files' states for the next look."""
        if not self._now:
            self.note.unlink(missing_ok=True)
            return
        text = json.dumps({key: [*sight.state, sight.since] for key, sight in self._now.items()})
        write_atomic(self.note, lambda path: path.write_text(text, encoding="utf-8"), private=True)


def _read(note: Path) -> dict[str, _Sight]:
    """Read the states that an earlier look noted; none if the note is damaged, which only costs a wait."""
    try:
        rows = dict(json.loads(note.read_text(encoding="utf-8")))
        return {
            key: _Sight((int(inode), int(size), int(changed)), float(since))
            for key, (inode, size, changed, since) in rows.items()
        }
    except (OSError, ValueError, TypeError, OverflowError, RecursionError):
        return {}
