"""The folder in which a worker runs the flows: the deployer's own, or a clone that the worker keeps.

`enter` is the pull step of ``prefect.yaml``. A worker whose environment has `WORKSPACE` keeps a clone there, and brings
it to the deployed commit before each run. All that runs leave in it stays: DVC's cache, checkpoints, metrics that wait
for a server. Without the variable, the worker runs in the folder that was deployed.
"""

import json
import os
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path

from pipeline.errors import UserError
from pipeline.folder_lock import RUN_LOCK, BusyError, only_one
from pipeline.redaction import redact

WORKSPACE, REPOSITORY = "PNEUMOFLOW_WORKSPACE", "PNEUMOFLOW_REPOSITORY"
STEP = "flows.workspace.enter"
# Tracked by git, but written by runs: a run's own stay as long as no commit changes them.
_RESULTS = ("dvc.lock", "reports/headline.json", "crossval/dvc.lock")
_TRANSFER_SECONDS = 1800


@dataclass(frozen=True)
class Source:
    """The code that was deployed.

    Attributes:
        folder: the deployer's folder.
        repository: the address of its remote repository, without credentials; empty if it has none.
        commit: the hash of the deployed commit; empty without git.
    """

    folder: str
    repository: str
    commit: str

    def __str__(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def parse(cls, text: str) -> "Source":
        """Return the source that ``text``, the JSON of one, describes."""
        return cls(**json.loads(text))


def deployed_source() -> Source:
    """Return the source that a deployment of this folder has now."""
    repository = _read("config", "--get", "remote.origin.url")
    return Source(str(Path.cwd()), _without_credentials(repository), _read("rev-parse", "HEAD"))


def enter(source: str) -> dict[str, str]:
    """Prepare the folder of the next run; return it as ``directory``, to which Prefect changes.

    Raises:
        UserError: the worker has no such folder, or its clone cannot be brought to the commit.
    """
    wanted, place = Source.parse(source), os.environ.get(WORKSPACE)
    folder = Path(place or wanted.folder).resolve()
    if place:
        update(folder, os.environ.get(REPOSITORY) or wanted.repository, wanted.commit)
    elif not folder.is_dir():
        raise UserError(
            f"{folder}: not on this machine; set {WORKSPACE} to a folder in which this worker keeps a clone"
        )
    return {"directory": str(folder)}


def update(folder: Path, repository: str, commit: str) -> None:
    """Bring a clone in ``folder``, which is made if need be, to a commit; a run at work there is left alone.

    Raises:
        UserError: there is no repository, it cannot be reached, or it does not have the commit.
    """
    if not repository or not commit:
        raise UserError(f"{WORKSPACE} = {folder}: deployed from a folder without a remote repository; set {REPOSITORY}")
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with only_one(folder / RUN_LOCK, "training run"):
            if not (folder / ".git").exists():
                _git(folder, "init", "--quiet")
            if not _has(folder, commit):
                _git(folder, "fetch", "--quiet", "--tags", "--", repository, "+refs/heads/*:refs/remotes/origin/*")
            if not _has(folder, commit):
                raise UserError(f"{redact(repository)}: has no commit {commit}; push it, and deploy again")
            _check_out(folder, commit)
    except BusyError:
        return  # the flow says so, and ends as Skipped


def _check_out(folder: Path, commit: str) -> None:
    former = _read("rev-parse", "HEAD", folder=folder)
    if former == commit:
        return
    kept = {name: (folder / name).read_bytes() for name in _RESULTS if _is_own(folder, name, former, commit)}
    _git(folder, "checkout", "--quiet", "--force", "--detach", commit)
    for name, content in kept.items():
        (folder / name).write_bytes(content)


def _is_own(folder: Path, name: str, former: str, commit: str) -> bool:
    """Return whether a file of results is there, and the new commit has the same one as the former."""
    versions = [_read("rev-parse", f"{one}:{name}", folder=folder) for one in (former, commit)]
    return bool(former) and versions[0] == versions[1] and (folder / name).is_file()


def _without_credentials(url: str) -> str:
    scheme, mark, rest = url.partition("://")
    host, slash, path = rest.partition("/")
    # ssh needs its user name; in http(s) it comes with a password or a token.
    return f"{scheme}://{host.rpartition('@')[2]}{slash}{path}" if mark and scheme.startswith("http") else url


def _has(folder: Path, commit: str) -> bool:
    return bool(_read("rev-parse", "--verify", f"{commit}^{{commit}}", folder=folder))


def _read(*arguments: str, folder: Path = Path()) -> str:
    """Return what git prints; nothing if git fails."""
    try:
        return _run(folder, *arguments).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def _git(folder: Path, *arguments: str) -> None:
    try:
        _run(folder, *arguments)
    except subprocess.TimeoutExpired:
        raise UserError(f"git {arguments[0]} in {folder}: not done within {_TRANSFER_SECONDS} seconds") from None
    except subprocess.CalledProcessError as error:
        reason = redact(" ".join(error.stderr.split()))
        raise UserError(f"git {arguments[0]} in {folder}: {reason.removeprefix('fatal: ')}") from None
    except OSError as error:
        raise UserError(f"git cannot be run: {error.strerror}") from None


def _run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    # Without a terminal, git must fail instead of asking for a password.
    calm = {**os.environ, "GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C"}
    return subprocess.run(
        ["git", *arguments], cwd=folder, env=calm, capture_output=True, text=True, timeout=_TRANSFER_SECONDS, check=True
    )
