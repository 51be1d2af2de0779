"""One run at a time in a folder: a lock that lives exactly as long as the processes that work under it."""

import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime
from pathlib import Path

import psutil

from pipeline.errors import UserError, run_main

# The processes that a killed run had started end within this time; see `pipeline.dvc.guard`.
_ORPHAN_SECONDS = 30.0
# The first is held by a training flow, and while a worker brings its clone to a commit; the others by stages.
RUN_LOCK, STAGE_LOCKS = Path(".pneumoflow.lock"), Path(".pneumoflow/stages")
_held: list[int] = []


class BusyError(UserError):
    """Another run is at work here."""


@contextmanager
def only_one(path: Path, what: str) -> Iterator[None]:
    """Hold the lock ``path`` inside the block; messages call another holder "another ``what``".

    Raises:
        BusyError: another run holds it. If that run's process is gone, the processes that it had started are ending,
            and are waited for first.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        _acquire(descriptor, path, what)
        _write(descriptor, path, {"pid": os.getpid(), "since": datetime.now(UTC).isoformat(timespec="seconds")})
        _held.append(descriptor)
        yield
        _write(descriptor, path, None)
    finally:
        if descriptor in _held:
            _held.remove(descriptor)
        os.close(descriptor)


def only_run_of(stage: str) -> AbstractContextManager[None]:
    """Return a context inside which no other process runs this stage in this folder; see `only_one`."""
    return only_one(STAGE_LOCKS / f"{stage}.lock", f"run of stage {stage}")


def require_idle() -> None:
    """Check that no training run and no stage is at work in this folder; `make clean` would take its files away.

    Raises:
        BusyError: one is.
    """
    for path in (RUN_LOCK, *sorted(STAGE_LOCKS.glob("*.lock"))):
        if path.exists():
            with only_one(path, "run"):
                pass


def held_locks() -> tuple[int, ...]:
    """Return the file descriptors of the locks that this process holds, so that a guard can hold them too."""
    return tuple(_held)


def try_lock(descriptor: int) -> bool:
    """Lock an open file unless another process holds the lock; return whether this process now holds it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _acquire(descriptor: int, path: Path, what: str) -> None:
    deadline = time.monotonic() + _ORPHAN_SECONDS
    while not try_lock(descriptor):
        pid, since = _holder(descriptor)
        if pid is None:
            raise BusyError(f"{path}: another {what} holds it; wait for that run or end it")
        if _is_alive(pid):
            raise BusyError(
                f"{path}: another {what} holds it: process {pid}, since {since}; wait for that run or end it"
            )
        if time.monotonic() > deadline:
            raise BusyError(f"{path}: another {what} holds it: processes that process {pid} left behind; end them")
        time.sleep(0.5)


def _is_alive(pid: int) -> bool:
    """Return whether a process runs; one that has ended, but that its parent has not waited for, does not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _holder(descriptor: int) -> tuple[int | None, str]:
    try:
        holder = json.loads(os.pread(descriptor, 200, 0))
        return int(holder["pid"]), str(holder["since"])
    except (ValueError, KeyError, TypeError):
        return None, ""  # locked a moment ago, or by another program


def _write(descriptor: int, path: Path, holder: dict[str, object] | None) -> None:
    try:
        os.ftruncate(descriptor, 0)
        if holder is not None:
            os.pwrite(descriptor, json.dumps(holder).encode(), 0)
    except OSError as error:  # a full disk
        raise OSError(error.errno, error.strerror, str(path)) from None


if __name__ == "__main__":
    run_main(require_idle)
