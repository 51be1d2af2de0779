"""A new SQLite store, made whole or not at all.

MLflow makes its tables in dozens of steps where all can see them: a process that is killed there, or a second
one that does the same, leaves a database that no later process can use.
"""

import os

import mlflow

from pipeline.files import temporary_folder
from pipeline.tracking.asking import tell
from pipeline.tracking.place import database_file


def make_database(uri: str) -> None:
    """Make the SQLite file of a store that is to be in one and has none yet; others are left alone.

    Raises:
        UserError: it cannot be written.
    """
    database = database_file(uri)
    if database is None or database.exists() or not database.parent.is_dir():
        return
    with temporary_folder(database.parent) as folder:
        made = folder / database.name
        tell("making its database", lambda: mlflow.MlflowClient(f"sqlite:///{made}"))
        try:
            os.link(made, database)  # unlike a rename, it never replaces one that another process has made
        except FileExistsError:
            return
        except OSError:  # a file system without hard links
            if not database.exists():
                made.rename(database)
