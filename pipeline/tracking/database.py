"""The creation of an SQLite store, whole or not at all.

MLflow creates its tables in dozens of steps, in the file that other processes see: a process that is killed
meanwhile, or a second one that does the same, leaves a database that no later process can use.
"""

import os

import mlflow

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
