"""A cache of registered models on this disk: each version is fetched once, and removed after its alias has moved on.

Each use resolves an alias anew, and compares the files with their digests. Folders appear whole or not at all; a
process holds a shared lock on the folders that it uses until it ends.
"""

import atexit
import hashlib
import json
import logging
import os
import re
import shutil
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock
from mlflow.entities.model_registry import ModelVersion

from pipeline.files import (
    directory_atomic,
    lock_descriptor,
    remove_unlocked,
    sha256_of,
    sync_file,
    temporary_folder,
    write_json,
)
from pipeline.tracking.registry import fetch_model
from pipeline.tracking.store import open_client
from pipeline.tracking.versions import resolve_version

logger = logging.getLogger(__name__)

CACHE = Path(".pneumoflow/models")
_DIGESTS, _USES, _LOCK = "digests.json", "uses.json", ".lock"
# Number of URIs that are remembered, so that a comparison of versions by number does not fetch them in turns.
_KEPT = 4


@dataclass(frozen=True)
class _Version:
    """A version of a registered model: ``uri`` names it without its alias, ``key`` names its folder in the cache."""

    uri: str
    key: str


def download_model(uri: str, folder: Path | None = None) -> Path:
    """Fetch the model folder (weights and configuration) of a run's or a registered model.

    Without ``folder``, a registered version comes from the cache in ``.pneumoflow/models``; other models, and all
    models if no cache can be written, are fetched into a temporary folder that is removed when the process ends.

    Raises:
        UserError: there is no such model, or it cannot be fetched.
    """
    open_client()
    if folder is not None:
        resolve_version(uri)
        return fetch_model(uri, folder)
    version = _resolve(uri)
    cache = _open_cache() if version else None
    if version is None or cache is None:
        return fetch_model(uri, _folder_until_exit())
    with FileLock(cache / _LOCK):
        path = cache / version.key
        if not _is_whole(path):
            _fill(path, version.uri)
        _hold(path)
        _note_use(cache, uri, version.key)
    return path


def _resolve(uri: str) -> _Version | None:
    """Return the version that a registry URI means now; None for a URI of no version, or of one that may change."""
    version = resolve_version(uri)
    if version is None:
        return None
    return _Version(f"models:/{version.name}/{version.version}", _key(str(version.name), version))


def _key(name: str, version: ModelVersion) -> str:
    """Return the name of a version's folder; its number alone means another model in another store."""
    identity = json.dumps([name, version.version, version.run_id, version.source, version.creation_timestamp])
    plain = re.sub(r"[^A-Za-z0-9_-]", "_", name)[:60]
    return f"{plain}-{version.version}-{hashlib.sha256(identity.encode()).hexdigest()[:16]}"


def _open_cache() -> Path | None:
    """Return the cache's folder, which only its owner can read; None if it cannot be made or locked."""
    try:
        CACHE.mkdir(mode=0o700, parents=True, exist_ok=True)
        CACHE.chmod(0o700)
        with FileLock(CACHE / _LOCK):
            return CACHE.resolve()
    except OSError as error:
        logger.warning("%s: models cannot be cached here (%s); they are fetched at each use", CACHE, error.strerror)
        return None


def _fill(path: Path, uri: str) -> None:
    if path.exists():
        logger.warning("%s: damaged; it is fetched again", path)
    with directory_atomic(path) as target, temporary_folder(path.parent) as scratch:
        digests = {}
        for source in sorted(one for one in fetch_model(uri, scratch).iterdir() if one.is_file()):
            digests[source.name] = sha256_of(source)
            sync_file(Path(shutil.move(source, target / source.name)))
        write_json(target / _DIGESTS, digests)


def _is_whole(path: Path) -> bool:
    """Return whether the folder holds the files that were fetched, unchanged, and no others."""
    try:
        digests = json.loads((path / _DIGESTS).read_text(encoding="utf-8"))
        names = {one.name for one in path.iterdir()} - {_DIGESTS}
        return names == set(digests) and all(sha256_of(path / name) == digests[name] for name in names)
    except (OSError, ValueError, TypeError):
        return False


def _hold(path: Path) -> None:
    """Keep other processes from removing the folder until this process ends, which closes the descriptor."""
    lock_descriptor(os.open(path, os.O_RDONLY | os.O_DIRECTORY), shared=True)


def _note_use(cache: Path, uri: str, key: str) -> None:
    """Remember that ``uri`` means ``key`` now, and remove the folders that no remembered URI means."""
    try:
        uses = dict(json.loads((cache / _USES).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        uses = {}
    uses.pop(uri, None)
    uses[uri] = key
    uses = dict(list(uses.items())[-_KEPT:])
    write_json(cache / _USES, uses)
    for path in cache.iterdir():
        if path.is_dir() and not path.name.startswith(".") and path.name not in uses.values():
            remove_unlocked(path)


def _folder_until_exit() -> Path:
    stack = ExitStack()
    folder = stack.enter_context(temporary_folder())
    atexit.register(stack.close)
    return folder
