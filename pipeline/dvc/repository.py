"""The git repository that DVC needs around the project."""

import configparser
from pathlib import Path

from pipeline.errors import UserError

_CONFIGS = (Path(".dvc/config"), Path(".dvc/config.local"))
# The file that makes a folder the top of a git repository; in a work tree of its own, or a submodule, it is no folder.
_GIT = ".git"


def require_repository() -> None:
    """Require what DVC requires of this folder, before a command of it fails without saying what to do.

    Raises:
        UserError: the folder is in no git repository, and DVC is not told to work without; or it has no DVC.
    """
    here = Path.cwd()
    if not (here / ".dvc").is_dir():
        raise UserError(f"{here}: has no folder .dvc; run this in the project's folder, or `dvc init` in a new one")
    if any((folder / _GIT).exists() for folder in (here, *here.parents)) or _works_without():
        return
    raise UserError(
        f"{here}: not a git repository, as after the download of a zip file; `git init` makes it one, and"
        " `dvc config --local core.no_scm true` lets DVC work without"
    )


def _works_without() -> bool:
    config = configparser.ConfigParser(interpolation=None)
    config.read(_CONFIGS, encoding="utf-8")
    return config.getboolean("core", "no_scm", fallback=False)
