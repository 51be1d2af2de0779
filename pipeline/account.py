"""A home folder and a user name for processes that have none, under a container's user id or a service account.

MLflow, Prefect and DVC look for both when they are imported, and end in a traceback if they are missing.
"""

import getpass
import os
import tempfile
from pathlib import Path

# Beside the other files that runs leave in a project folder.
_OWN = Path(".pneumoflow/home")


def provide_account() -> None:
    """Set HOME and USER if they are missing, and Prefect's home if HOME cannot be written.

    An existing HOME stays as it is, even if it is read-only, because credentials lie in it.
    """
    if not _exists():
        os.environ["HOME"] = str(_substitute())
    if "PREFECT_HOME" not in os.environ and not _can_be_written(Path.home() / ".prefect"):
        os.environ["PREFECT_HOME"] = str(_substitute() / ".prefect")
    try:
        getpass.getuser()
    except (KeyError, OSError):
        os.environ["USER"] = f"user-{os.getuid()}"


def _exists() -> bool:
    try:
        return os.environ.get("HOME") != "" and Path.home().is_dir()
    except (RuntimeError, OSError):
        return False


def _can_be_written(folder: Path) -> bool:
    """Return whether this process may create files in ``folder``, or create ``folder`` itself."""
    nearest = next(one for one in (folder, *folder.parents) if one.exists())
    return os.access(nearest, os.W_OK | os.X_OK)


def _substitute() -> Path:
    if not os.access(".", os.W_OK):
        return Path(tempfile.gettempdir())
    _OWN.mkdir(parents=True, exist_ok=True)
    return _OWN.resolve()
