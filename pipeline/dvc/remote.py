"""DVC's default remote: where it is, and whether this machine may write to it and read from it."""

import logging
import uuid
from pathlib import Path

from pipeline.errors import UserError
from pipeline.escaping import shortened
from pipeline.redaction import redact


def remote_elsewhere() -> str | None:
    """Return the name and address of the default remote; None if there is none, or it is a folder of this project."""
    from dvc.repo import Repo  # takes a second

    with Repo() as repo:
        name = repo.config["core"].get("remote")
        if not name:
            return None
        url = str(repo.config["remote"][name]["url"])
        if "://" not in url and (Path(repo.dvc_dir) / url).resolve().is_relative_to(Path(repo.root_dir).resolve()):
            return None
        return redact(f"{name} ({url})")


def probe_remote() -> str:
    """Write a small file to the default remote, read it and remove it; return the remote's name and address.

    Raises:
        UserError: there is no default remote, or it refuses one of these.
    """
    from dvc.exceptions import DvcException  # importing DVC takes a second
    from dvc.repo import Repo

    logging.getLogger("aiobotocore").setLevel(logging.WARNING)  # it tells where it has found credentials
    try:
        with Repo() as repo:
            name = repo.config["core"].get("remote")
            if not name:
                raise UserError("no default remote; `dvc remote add --default NAME URL` sets one")
            storage = repo.cloud.get_remote_odb(name)
            place = redact(f"{name} ({repo.config['remote'][name]['url']})")
            content = uuid.uuid4().hex.encode()
            path = storage.fs.join(storage.path, f"pneumoflow-doctor-{content.decode()}")
            storage.fs.makedirs(storage.path, exist_ok=True)
            storage.fs.pipe_file(path, content)
            read = storage.fs.cat_file(path)
            storage.fs.rm(path)
    except UserError:
        raise
    except DvcException as error:
        raise UserError(shortened(redact(str(error)))) from None
    # Each kind of storage has a library of its own, with its own errors.
    except Exception as error:  # noqa: BLE001
        raise UserError(shortened(redact(f"{type(error).__name__}: {error}"))) from None
    if read != content:
        raise UserError(f"{place}: gives back {len(read)} other bytes than were written")
    return place
