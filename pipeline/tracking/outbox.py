"""Entries for the tracking server: first written to this disk, so that neither a kill nor a dead server loses them.

.pneumoflow/spool/<run id>/entries.jsonl   one entry a line, in order
.pneumoflow/spool/<run id>/delivered       how many bytes of it have arrived
.pneumoflow/spool/<run id>/damaged.jsonl   lines that are not entries, or that the store refuses for good
.pneumoflow/spool/<run id>/files/          files for the run's artifacts, under the names that they will have there
.pneumoflow/spool/<run id>/lock            held by the process that writes or delivers
"""

import json
import logging
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from itertools import takewhile
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from pipeline.files import write_atomic, write_text

logger = logging.getLogger(__name__)

OUTBOX = Path(".pneumoflow/spool")
_ENTRIES, _DELIVERED, _DAMAGED, _LOCK, _FILES = "entries.jsonl", "delivered", "damaged.jsonl", "lock", "files"
_BATCH = 1000  # as many metrics as MLflow takes in one request
Entry = dict[str, Any]
_ENDS = ("FINISHED", "FAILED", "KILLED")
_METRIC: dict[str, type | tuple[type, ...]] = {"key": str, "value": (int, float), "timestamp": int, "step": int}


class Outbox:
    """The entries of one run, used by one process at a time.

    Raises:
        Timeout: another process uses it.
    """

    def __init__(self, run_id: str, root: Path = OUTBOX) -> None:
        self.run_id, self._folder = run_id, root.resolve() / run_id
        self._folder.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(self._folder / _LOCK, timeout=0)
        self._lock.acquire()
        self._path = self._folder / _ENTRIES
        self._writing = threading.Lock()
        self._drop_half_a_line()
        self._file = self._path.open("a", encoding="utf-8")

    def _drop_half_a_line(self) -> None:
        """Remove the unfinished last line that a process leaves if it is killed while it writes."""
        if self._path.exists():
            whole = self._path.read_bytes().rpartition(b"\n")
            if whole[2]:
                os.truncate(self._path, len(whole[0]) + len(whole[1]))

    def append(self, entries: list[Entry]) -> None:
        """Add entries; they survive the end of this process from here on."""
        with self._writing:
            self._file.writelines(json.dumps(entry) + "\n" for entry in entries)
            self._file.flush()

    def add_file(self, name: str, content: bytes) -> None:
        """Add a file for the run's artifacts; ``name`` is its path there, such as ``val/epoch-0004.jpg``."""
        path = self._folder / _FILES / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, lambda temporary: temporary.write_bytes(content))

    def sync(self) -> None:
        """Wait until the entries are on the disk: they survive a power failure from here on."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def last_values(self) -> dict[str, tuple[int, float]]:
        """Return metric -> its last step in this outbox and the value there; of two values, the one noted later."""
        last: dict[str, tuple[int, float]] = {}
        for line in self._path.read_bytes().splitlines():
            entry = _entry(line)
            if entry and "key" in entry and entry["step"] >= last.get(entry["key"], (-1, 0.0))[0]:
                last[entry["key"]] = entry["step"], float(entry["value"])
        return last

    @property
    def waiting(self) -> int:
        """Return the number of bytes that have not arrived."""
        return max(0, self.size - self._delivered())

    @property
    def size(self) -> int:
        """Return the number of bytes that were ever added."""
        return self._path.stat().st_size

    def has_delivered(self, size: int) -> bool:
        """Return whether all has arrived that was there when `size` had this value."""
        return self._delivered() >= size

    def deliver(self, send: Callable[[str, list[Entry]], None]) -> int:
        """Give ``send`` the run's id and its entries, in order and in batches; an exception ends the delivery.

        Lines that are not entries, as a damaged disk leaves them, are put aside.

        A batch counts as delivered when ``send`` returns. If this process ends just before that is
        noted, the batch is sent again: ``send`` must tolerate that.

        Returns:
            The number of entries that were delivered.
        """
        count = 0
        for entries, end in self._batches():
            if entries:
                send(self.run_id, entries)
            write_text(self._folder / _DELIVERED, str(end))
            count += len(entries)
        return count

    def deliver_files(self, send: Callable[[str, Path, str], None]) -> int:
        """Give ``send`` the run's id, each file and its folder among the artifacts; an exception ends the delivery.

        Returns:
            The number of files that were delivered; they are removed here.
        """
        paths = self._waiting_files()
        for path in paths:
            folder = path.parent.relative_to(self._folder / _FILES).as_posix()
            send(self.run_id, path, "" if folder == "." else folder)
            path.unlink()
        return len(paths)

    def _waiting_files(self) -> list[Path]:
        root = self._folder / _FILES
        # A folder whose name begins with a dot holds a file that is not written to its end.
        finished = (path for path in root.rglob("*") if "/." not in f"/{path.relative_to(root).as_posix()}")
        return sorted(path for path in finished if path.is_file())

    def _batches(self) -> Iterator[tuple[list[Entry], int]]:
        offset = self._delivered()
        with self._path.open("rb") as file:
            file.seek(offset)
            while True:
                # A line that is still being written ends the batch: what would be read after it is its other half.
                lines = list(takewhile(_is_whole, (file.readline() for _ in range(_BATCH))))
                if not lines:
                    return
                offset += sum(len(line) for line in lines)
                entries = [_entry(line) for line in lines]
                if damaged := [line for line, entry in zip(lines, entries, strict=True) if entry is None]:
                    self.put_aside(damaged, "are damaged")
                yield [entry for entry in entries if entry is not None], offset
                file.seek(offset)

    def put_aside(self, lines: list[bytes], why: str) -> None:
        """Keep lines that cannot be delivered, and log a warning."""
        path = self._folder / _DAMAGED
        with path.open("ab") as file:
            file.writelines(line.rstrip(b"\n") + b"\n" for line in lines)
        logger.warning("%s: %d entries of MLflow run %s %s; they are kept there", path, len(lines), self.run_id, why)

    def _delivered(self) -> int:
        try:
            return max(0, int((self._folder / _DELIVERED).read_text()))
        except (FileNotFoundError, ValueError):
            return 0

    def close(self, *, remove: bool) -> None:
        """Release the outbox; ``remove`` (no more entries come) deletes it if all arrived and none was put aside."""
        self._file.close()
        if remove and not self.waiting and not self._waiting_files() and not (self._folder / _DAMAGED).exists():
            shutil.rmtree(self._folder)
        self._lock.release()


def left_behind(root: Path = OUTBOX) -> Iterator[Outbox]:
    """Yield the outboxes that no process holds, of runs that ended before all entries had arrived."""
    for folder in sorted(root.glob("*")) if root.is_dir() else []:
        if not (folder / _ENTRIES).is_file():
            continue
        try:
            outbox = Outbox(folder.name, root)
        except Timeout:
            continue
        except OSError as error:
            logger.warning("%s: cannot be read: %s", folder, error.strerror)
            continue
        yield outbox


def _is_whole(line: bytes) -> bool:
    return line.endswith(b"\n")


def _entry(line: bytes) -> Entry | None:
    """Return the entry of a line, a metric or the run's end; None if it is neither."""
    try:
        entry: Entry = json.loads(line)
        if "status" in entry and set(entry) <= {"status", "end_time"}:
            return entry if entry["status"] in _ENDS and isinstance(entry.get("end_time", 0), int) else None
        if set(entry) != set(_METRIC) or not all(isinstance(entry[key], kind) for key, kind in _METRIC.items()):
            return None
        return entry
    except (ValueError, TypeError, RecursionError, OverflowError):
        return None
