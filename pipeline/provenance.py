"""Which code and which data: git commit, DVC hashes, and the fingerprint of a training run."""

import hashlib
import json
import subprocess
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

from pipeline.documents import read_yaml


def git_state() -> dict[str, str]:
    """``git_commit`` and ``git_dirty`` of the working tree; ``unknown`` outside a repository.

    ``dvc.lock`` and the metrics do not count: they are what a pipeline writes, not what it runs.
    """
    commit = _git("rev-parse", "HEAD")
    changes = _git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!dvc.lock", ":!reports")
    dirty = "unknown" if changes is None else str(bool(changes)).lower()
    return {"git_commit": commit or "unknown", "git_dirty": dirty}


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def input_hashes(lock: Path = Path("dvc.lock"), folder: Path = Path("data")) -> dict[str, str]:
    """DVC's hashes of what is trained on: raw data from ``data/*.dvc``, what was made of it from ``dvc.lock``."""
    hashes = {}
    for file in sorted(folder.glob("*.dvc")):
        for out in _yaml(file).get("outs", []):
            hashes[f"{file.parent / out['path']}"] = str(out.get("md5", ""))
    if lock.exists():
        for stage in (_yaml(lock).get("stages") or {}).values():
            outs = {out["path"]: str(out.get("md5", "")) for out in stage.get("outs", [])}
            hashes |= {path: value for path, value in outs.items() if Path(path).is_relative_to(folder)}
    return hashes


def _yaml(path: Path) -> dict[str, Any]:
    return read_yaml(path) or {}


def fingerprint(values: Any, files: Iterable[Path]) -> str:
    """16 hexadecimal digits that change with the values and with any byte or name of the files."""
    digest = hashlib.sha256(json.dumps(values, sort_keys=True).encode())
    for path in sorted(files):
        with path.open("rb") as file:
            digest.update(f"{path}:{hashlib.file_digest(file, 'sha256').hexdigest()}".encode())
    return digest.hexdigest()[:16]


def environment() -> str:
    """The installed packages and their versions, as pip writes them; one a line."""
    found = {(part.metadata["Name"] or "").lower(): part.version for part in metadata.distributions()}
    return "".join(f"{name}=={number}\n" for name, number in sorted(found.items()) if name)
