"""Provenance of code and data: git commit, DVC hashes, and the fingerprint of a training run."""

import hashlib
import json
import logging
import os
import subprocess
from collections.abc import Iterable
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from pipeline.documents import read_yaml
from pipeline.files import sha256_of

logger = logging.getLogger(__name__)


def git_state() -> dict[str, str]:
    """Return ``git_commit`` and ``git_dirty`` of the working tree; ``unknown`` outside a repository.

    Changes of ``dvc.lock`` and ``reports`` (the metrics) do not count: a pipeline writes them, it does not run them.
    """
    commit = _git("rev-parse", "HEAD")
    changes = _git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!dvc.lock", ":!reports")
    dirty = "unknown" if changes is None else str(bool(changes)).lower()
    return {"git_commit": commit or "unknown", "git_dirty": dirty}


@cache
def _warn_once(reason: str) -> None:
    """Warn now that the commit is not recorded, not when somebody asks which code made a model."""
    logger.warning("the git commit is not recorded: %s", reason)


def _git(*arguments: str) -> str | None:
    try:
        english = {**os.environ, "LC_ALL": "C"}
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, timeout=30, check=True, env=english)
    except subprocess.CalledProcessError as error:
        _warn_once(_git_reason(error.stderr))
    except (OSError, subprocess.SubprocessError) as error:
        _warn_once(f"git cannot be run ({type(error).__name__})")
    else:
        return done.stdout.strip()
    return None


def _git_reason(said: str) -> str:
    if "dubious ownership" in said:
        folder = Path.cwd()
        return f"the repository belongs to another user; `git config --global --add safe.directory {folder}` allows it"
    return next(iter(said.splitlines()), "git says nothing").removeprefix("fatal: ")


def input_hashes(raw: str, lock: Path = Path("dvc.lock"), folder: Path = Path("data")) -> dict[str, str]:
    """Return DVC's hashes of the training data: the raw data in ``raw``, and the data made from them in ``folder``.

    The hash of the raw data is the one that the stage ``preprocess`` has used. If the stage was started without
    DVC, it is the hash in the ``.dvc`` file of exactly this folder, if there is one.
    """
    hashes = {}
    stages = (_yaml(lock).get("stages") or {}) if lock.exists() else {}
    used = {dep["path"]: str(dep.get("md5", "")) for dep in stages.get("preprocess", {}).get("deps", [])}
    known = [value for path, value in used.items() if Path(path).resolve() == Path(raw).resolve()]
    if recorded := known or _recorded(raw, folder):
        hashes[raw] = recorded[0]
    for stage in stages.values():
        outs = {out["path"]: str(out.get("md5", "")) for out in stage.get("outs", [])}
        hashes |= {path: value for path, value in outs.items() if Path(path).is_relative_to(folder)}
    return hashes


def _recorded(raw: str, folder: Path) -> list[str]:
    """Return the hashes that ``dvc add`` has recorded of a folder."""
    outs = [(file.parent / out["path"], out) for file in folder.glob("*.dvc") for out in _yaml(file).get("outs", [])]
    return [str(out.get("md5", "")) for path, out in outs if Path(path).resolve() == Path(raw).resolve()]


def _yaml(path: Path) -> dict[str, Any]:
    return read_yaml(path) or {}


def fingerprint(values: Any, files: Iterable[Path]) -> str:
    """Return 16 hexadecimal digits that change with the values and with any byte or name of the files."""
    digest = hashlib.sha256(json.dumps(values, sort_keys=True).encode())
    for path in sorted(files):
        digest.update(f"{path}:{sha256_of(path)}".encode())
    return digest.hexdigest()[:16]


def code_files(listed: Iterable[str]) -> list[Path]:
    """Return the Python files of folders and modules that are named as in dvc.yaml, such as ``pipeline/detection``."""
    root = Path(__file__).resolve().parent.parent
    files = (path for entry in listed for path in (root / entry, *(root / entry).rglob("*.py")))
    # Relative paths, because a project that was moved has the same code.
    return sorted(Path(os.path.relpath(path)) for path in files if path.suffix == ".py")


def environment() -> str:
    """Return the installed packages and their versions in pip's notation, one per line."""
    versions = {(part.metadata["Name"] or "").lower(): part.version for part in metadata.distributions()}
    return "".join(f"{name}=={number}\n" for name, number in sorted(versions.items()) if name)
