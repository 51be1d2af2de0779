"""The address of the store of runs."""

import os
from pathlib import Path
from urllib.parse import SplitResult, unquote, urlsplit

from pipeline.errors import UserError
from pipeline.redaction import redact

DEFAULT_URI = "sqlite:///mlflow.db"
_URI, _USER, _PASSWORD = "MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"
_EXPERIMENTS = (".dvc", "tmp", "exps")  # `dvc exp run` works here in copies of the project


def tracking_uri() -> str:
    """Return ``MLFLOW_TRACKING_URI`` or, if it is not set, a database in the project's folder.

    A user name and a password in a server's address are moved to ``MLFLOW_TRACKING_USERNAME`` and
    ``MLFLOW_TRACKING_PASSWORD``: libraries show addresses in messages, but not those.

    Raises:
        UserError: the value is not an address.
    """
    uri = os.environ.get(_URI, "").strip()
    if not uri:
        return _default_uri()
    if not uri.startswith(("http://", "https://")):
        return uri
    parts = _split(uri)
    if parts.username is None:
        return uri
    os.environ[_USER], os.environ[_PASSWORD] = unquote(parts.username), unquote(parts.password or "")
    os.environ[_URI] = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
    return os.environ[_URI]


def _split(uri: str) -> SplitResult:
    try:
        parts = urlsplit(uri)
        if parts.hostname is None or parts.port == 0:
            raise ValueError("no host")
    except ValueError as error:
        raise UserError(f"{_URI} = {redact(uri)}: not an address: {redact(str(error))}") from None
    return parts


def shown_uri() -> str:
    """Return the address with its credentials hidden."""
    return redact(tracking_uri())


def project_folder() -> Path:
    """Return the working folder; in a copy that `dvc exp run` has made of a project, the project's own folder."""
    here = Path.cwd()
    for depth in range(len(here.parts) - len(_EXPERIMENTS)):
        if here.parts[depth : depth + len(_EXPERIMENTS)] == _EXPERIMENTS:
            return Path(*here.parts[:depth])
    return here


def _default_uri() -> str:
    folder = project_folder()
    return DEFAULT_URI if folder == Path.cwd() else f"sqlite:///{folder}/mlflow.db"


def database_file(uri: str) -> Path | None:
    """Return the file of an SQLite store; None for any other store."""
    if not uri.startswith("sqlite:///"):
        return None
    name = uri.removeprefix("sqlite:///").partition("?")[0]
    return Path(name).resolve() if name not in ("", ":memory:") else None
