"""Databases as stores: the creation of an SQLite file, whole or not at all, and a server that may be away.

MLflow creates its tables in dozens of steps, in the file that other processes see: a process that is killed
meanwhile, or a second one that does the same, leaves a database that no later process can use.
"""

import os
from functools import cache

import mlflow
from mlflow.store.db.db_types import DATABASE_ENGINES
from mlflow.store.db.utils import create_sqlalchemy_engine
from mlflow.utils.uri import get_uri_scheme

from pipeline.files import temporary_folder
from pipeline.tracking.asking import tell
from pipeline.tracking.place import database_file


def make_database(uri: str) -> None:
    """Create the file of an SQLite store that has none yet; other stores are left alone.

    Raises:
        UserError: the file cannot be written.
    """
    database = database_file(uri)
    if database is None or database.exists() or not database.parent.is_dir():
        return
    with temporary_folder(database.parent) as folder:
        made = folder / database.name
        tell("making its database", lambda: mlflow.MlflowClient(f"sqlite:///{made}"))
        try:
            os.link(made, database)  # unlike a rename, a link never replaces a file that another process has made
        except FileExistsError:
            return
        except OSError:  # a file system without hard links
            if not database.exists():
                made.rename(database)


def reach_database(uri: str) -> None:
    """Connect to a database server that is the store; other stores are left alone.

    MLflow itself tries for a hundred seconds to open one that is away, at each call.

    Raises:
        UserError: it does not answer for as long as requests are repeated.
    """
    if database_file(uri) is None and get_uri_scheme(uri) in DATABASE_ENGINES:
        tell("connecting to its database", lambda: _connect_once(uri))


@cache
def _connect_once(uri: str) -> None:
    engine = create_sqlalchemy_engine(uri)
    try:
        engine.connect().close()
    finally:
        engine.dispose()
