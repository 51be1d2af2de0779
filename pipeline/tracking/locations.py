"""The place of an SQLite store's files: ``mlruns`` beside its database, even after the folder was moved or copied.

MLflow writes absolute paths into the database. In effect they are made relative to the database: at each start,
paths that lead elsewhere although the files are here are set anew.
"""

import logging
import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from urllib.parse import unquote, urlsplit

from pipeline.errors import UserError
from pipeline.redaction import redact
from pipeline.tracking.place import database_file, project_folder

logger = logging.getLogger(__name__)

FILES = "mlruns"
# Tables and columns in which MLflow keeps the places of files.
_COLUMNS = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)
# MLflow treats a plain path as a quoted one, so these characters would be read as something else.
_NEEDS_QUOTES = re.compile(r"[%#?;]")
_BUSY_SECONDS = 20.0
_COPIES = "/.dvc/tmp/exps/"


def new_location(uri: str, experiment: str) -> str | None:
    """Return the place of a new experiment's files; None leaves the choice to a tracking server."""
    if uri.startswith(("http:", "https:", "file:", "databricks")):
        return None
    database = database_file(uri)
    folder = database.parent if database else project_folder()
    return _written(folder / FILES / _folder_name(experiment))


def require_location(uri: str, experiment: str, location: str) -> None:
    """Refuse to write to a folder that has gone: MLflow would make it anew.

    Raises:
        UserError: the files of the experiment's runs lie neither beside the database nor in an existing folder.
    """
    database, path = database_file(uri), _local_path(location)
    if database is None or path is None or path.exists() or path.resolve().is_relative_to(database.parent):
        return
    with closing(sqlite3.connect(database, timeout=_BUSY_SECONDS)) as connection:
        if not _is_used(connection, location):
            return
    raise UserError(
        f"{database}: experiment {experiment} keeps its files in {path}, which is not there (not mounted, moved, or"
        f" a copy that is gone?); `pneumoflow doctor --relocate` sets {database.parent / FILES} as their place"
    )


def mend_locations(uri: str) -> int:
    """Set the places of files that were moved or copied together with the database; return how many there were."""
    return _relocate(uri, only_what_is_here=True)


def relocate(uri: str) -> int:
    """Make ``mlruns`` beside the database the place of all files that lie, or lay, elsewhere.

    Returns:
        The number of experiments, runs and models that have another place now.

    Raises:
        UserError: the store is not an SQLite file.
    """
    if database_file(uri) is None:
        raise UserError(
            f"MLFLOW_TRACKING_URI = {redact(uri)}: only an SQLite store's file locations can be set from here"
        )
    return _relocate(uri, only_what_is_here=False)


def _relocate(uri: str, *, only_what_is_here: bool) -> int:
    database = database_file(uri)
    if database is None or not database.exists():
        return 0
    try:
        with closing(sqlite3.connect(database, timeout=_BUSY_SECONDS)) as connection, connection:
            moves = [
                (old, new)
                for old, new in _moves(connection, database.parent)
                if not only_what_is_here or _is_here(connection, old, new)
            ]
            if not moves:
                return 0
            connection.execute("BEGIN IMMEDIATE")
            counts = [_replace(connection, old, new) for old, new in moves]
    except sqlite3.Error as error:
        raise UserError(f"{database}: cannot be used as MLflow's store: {error}") from None
    for (old, new), count in zip(moves, counts, strict=True):
        if count > 1:  # more than the experiment itself
            logger.warning("MLflow's files have moved with their database, from %s to %s", old, new)
    return sum(counts)


def _moves(connection: sqlite3.Connection, folder: Path) -> Iterator[tuple[str, str]]:
    """Yield old and new place of each experiment whose files are outside the database's folder, or in a copy by DVC."""
    if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'experiments'").fetchone():
        return
    for name, location in connection.execute("SELECT name, artifact_location FROM experiments").fetchall():
        path = _local_path(location or "")
        if path is None or (path.resolve().is_relative_to(folder) and _COPIES not in path.as_posix()):
            continue
        tail = path.name if path.parent.name == FILES else _folder_name(name)
        yield location, _written(folder / FILES / tail)


def _is_here(connection: sqlite3.Connection, old: str, new: str) -> bool:
    """Return whether the files are at the new place; or at neither, if the old one was unused or in a copy by DVC."""
    old_path, new_path = _local_path(old), _local_path(new)
    assert old_path is not None
    assert new_path is not None
    if new_path.is_dir():
        return True
    if old_path.exists():
        return False
    return _COPIES in old_path.as_posix() or (
        not _is_used(connection, old) and old_path.parent.name == FILES and not old_path.parent.parent.exists()
    )


def _is_used(connection: sqlite3.Connection, location: str) -> bool:
    runs = "SELECT 1 FROM runs WHERE substr(artifact_uri, 1, ?) = ?"
    return connection.execute(runs, (len(location) + 1, f"{location}/")).fetchone() is not None


def _replace(connection: sqlite3.Connection, old: str, new: str) -> int:
    count = 0
    for table, column in _COLUMNS:
        # The names of tables and columns are constants; no text that was read is part of the statement.
        statement = (
            f"UPDATE {table} SET {column} = ? || substr({column}, ?) WHERE {column} = ? OR substr({column}, 1, ?) = ?"  # noqa: S608
        )
        cursor = connection.execute(statement, (new, len(old) + 1, old, len(old) + 1, f"{old}/"))
        count += cursor.rowcount
    return count


def _folder_name(experiment: str) -> str:
    return re.sub(r"[^\w.-]", "_", experiment)


def _local_path(location: str) -> Path | None:
    """Return the folder that a location names; None if it is not a folder of this machine."""
    parts = urlsplit(location)
    if parts.scheme == "file":
        return Path(unquote(parts.path))
    return None if parts.scheme or not location else Path(unquote(location))


def _written(path: Path) -> str:
    """Return a path in the form that MLflow needs."""
    return path.as_uri() if _NEEDS_QUOTES.search(str(path)) else str(path)
