"""What is on its way to the tracking server: on this disk first, so that neither a kill nor a dead server loses it.

.pneumoflow/spool/<run id>/entries.jsonl   one entry a line, in order
.pneumoflow/spool/<run id>/delivered       how many bytes of it have arrived
.pneumoflow/spool/<run id>/lock            held by the process that writes or delivers
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from pipeline.files import write_text

SPOOL = Path(".pneumoflow/spool")
_ENTRIES, _DELIVERED, _LOCK = "entries.jsonl", "delivered", "lock"
_BATCH = 1000  # as many metrics as MLflow takes in one request
Entry = dict[str, Any]


class Spool:
    """The entries of one run; one process at a time.

    Raises:
        Timeout: another process has it.
    """

    def __init__(self, run_id: str, root: Path = SPOOL) -> None:
        self.run_id, self._folder = run_id, root.resolve() / run_id
        self._folder.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(self._folder / _LOCK, timeout=0)
        self._lock.acquire()
        self._path = self._folder / _ENTRIES
        self._drop_half_a_line()
        self._file = self._path.open("a", encoding="utf-8")

    def _drop_half_a_line(self) -> None:
        """A process that was killed while it wrote leaves one."""
        if self._path.exists():
            whole = self._path.read_bytes().rpartition(b"\n")
            if whole[2]:
                os.truncate(self._path, len(whole[0]) + len(whole[1]))

    def append(self, entries: list[Entry]) -> None:
        """Add entries; they survive the end of this process from here on."""
        self._file.writelines(json.dumps(entry) + "\n" for entry in entries)
        self._file.flush()

    def sync(self) -> None:
        """Wait until the entries are on the disk: they survive a power failure from here on."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def last_steps(self) -> dict[str, int]:
        """Metric -> its last step that is here."""
        steps: dict[str, int] = {}
        for line in self._path.read_text(encoding="utf-8").splitlines():
            entry = json.loads(line)
            if "key" in entry:
                steps[entry["key"]] = max(steps.get(entry["key"], -1), entry["step"])
        return steps

    @property
    def waiting(self) -> int:
        """Bytes that have not arrived."""
        return self._path.stat().st_size - self._delivered()

    def deliver(self, send: Callable[[str, list[Entry]], None]) -> int:
        """Give ``send`` the run's id and its entries, in order and in batches; what it raises ends the delivery.

        A batch counts as delivered when ``send`` returns. If this process ends just before that is
        noted, the batch is sent again: ``send`` must not mind.

        Returns:
            How many entries were delivered.
        """
        count = 0
        for entries, end in self._batches():
            send(self.run_id, entries)
            write_text(self._folder / _DELIVERED, str(end))
            count += len(entries)
        return count

    def _batches(self) -> Iterator[tuple[list[Entry], int]]:
        place = self._delivered()
        with self._path.open("rb") as file:
            file.seek(place)
            while True:
                lines = [line for line in (file.readline() for _ in range(_BATCH)) if line.endswith(b"\n")]
                if not lines:
                    return
                place += sum(len(line) for line in lines)
                yield [json.loads(line) for line in lines], place
                file.seek(place)

    def _delivered(self) -> int:
        try:
            return int((self._folder / _DELIVERED).read_text())
        except (FileNotFoundError, ValueError):
            return 0

    def close(self, *, remove: bool) -> None:
        """Let go of the spool; remove it where all has arrived and nothing more will come."""
        self._file.close()
        if remove and not self.waiting:
            shutil.rmtree(self._folder)
        self._lock.release()


def left_behind(root: Path = SPOOL) -> Iterator[Spool]:
    """The spools that no process holds, of runs that ended before all had arrived."""
    for folder in sorted(root.glob("*")) if root.is_dir() else []:
        try:
            spool = Spool(folder.name, root)
        except Timeout:
            continue
        yield spool
