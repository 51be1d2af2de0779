"""The SQLite file of Prefect's server: the server's first start creates it completely, or it is created anew.

Prefect creates its tables in dozens of steps. A server that is killed meanwhile, or finds the disk full, leaves a
file that no later server can use. Two servers that create the same file do the same.
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
    """Return the file that Prefect is configured to use; None for another kind of database, or one in memory."""
    address = PREFECT_API_DATABASE_CONNECTION_URL.value()
    url = make_url(address) if address else None
    if url is None or not url.drivername.startswith("sqlite") or url.database in (None, "", ":memory:"):
        return None
    return Path(str(url.database))


@contextmanager
def whole_database(database: Path | None) -> Iterator[tuple[int, ...]]:
    """Hold the right to create the database in the block, which must start a server and wait until it answers.

    A marker file beside the database shows that the database is being created. This process, and the server that
    inherits the descriptor, hold the marker's lock. A marker without a lock was left by a start that was interrupted:
    its database is removed first. After an error the marker stays.

    Yields:
        The descriptors that the server must inherit; none if the database exists already.
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
        if not _is_at(descriptor, marker):  # another process has created the database meanwhile
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
