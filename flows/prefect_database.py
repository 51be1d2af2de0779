"""The SQLite file of Prefect's server, which the server's first start makes: whole, or made anew.

Prefect makes its tables in dozens of steps. A server that is killed there, or finds the disk full, leaves a
file that no later server can use; so does a second server that makes the same file.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from prefect.settings import PREFECT_API_DATABASE_CONNECTION_URL
from sqlalchemy.engine import make_url

_PARTS = ("", "-wal", "-shm", "-journal")


def database_file() -> Path | None:
    """The file that Prefect is set to; None for another kind of database, or one in memory."""
    address = PREFECT_API_DATABASE_CONNECTION_URL.value()
    url = make_url(address) if address else None
    if url is None or not url.drivername.startswith("sqlite") or url.database in (None, "", ":memory:"):
        return None
    return Path(str(url.database))


@contextmanager
def whole_database(database: Path | None) -> Iterator[tuple[int, ...]]:
    """Hold the right to make the database inside the block, which must start a server and wait until it answers.

    A marker file beside the database says that the database is being made. This process, and the server that
    inherits the descriptor, hold the marker's lock. A marker without a lock was left by a start that was cut off:
    its database is removed first. After an error the marker stays.

    Yields:
        The descriptors that the server must inherit; none if the database is there already.
    """
    if database is None:
        yield ()
        return
    marker = database.with_name(f"{database.name}.new")
    if database.exists() and not marker.exists():
        yield ()
        return
    descriptor = _lock(marker)
    try:
        if not _is_at(descriptor, marker):  # another process has made the database meanwhile
            yield ()
            return
        for part in _PARTS:
            database.with_name(database.name + part).unlink(missing_ok=True)
        yield (descriptor,)
        marker.unlink(missing_ok=True)
    finally:
        os.close(descriptor)


def _lock(marker: Path) -> int:
    marker.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(marker, os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    return descriptor


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
