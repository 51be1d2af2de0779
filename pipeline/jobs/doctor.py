"""``pneumoflow doctor``: whether this machine, the servers and the caller's rights suffice, a line for each."""

import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, requires, version
from typing import NamedTuple

from packaging.requirements import Requirement

from pipeline.dvc.remote import probe_remote
from pipeline.errors import UserError
from pipeline.params import load_params
from pipeline.sources.kaggle import require_credentials
from pipeline.tracking import registered_champion, require_rights, shown_uri

_PACKAGE = "pneumoflow"
_SHOWN = ("torch", "mlflow", "dvc", "prefect")
# Checkpoints, a model, DVC's copy of it, and metrics that wait for a server.
_LEAST_GIB = 2.0
_PREFECT_SECONDS = 60


class Check(NamedTuple):
    """One check: its ``call`` returns its finding, and raises `UserError` if it fails; only some are ``needed``."""

    name: str
    call: Callable[[], str]
    needed: bool = True


def doctor(checks: Sequence[Check], tell: Callable[[str], None]) -> None:
    """Make all checks, and tell a line about each.

    Raises:
        UserError: a check failed that is needed.
    """
    failed = []
    for check in checks:
        try:
            tell(f"ok      {check.name}: {check.call()}")
        except UserError as error:
            tell(f"{'failed' if check.needed else '-':<7} {check.name}: {error}")
            failed += [check.name] * check.needed
    if failed:
        raise UserError(f"{len(failed)} of {len(checks)} checks failed: {', '.join(failed)}")


def _versions() -> str:
    wrong = []
    for text in requires(_PACKAGE) or ():
        wanted = Requirement(text)
        if wanted.marker is not None and not wanted.marker.evaluate({"extra": ""}):
            continue
        try:
            found = version(wanted.name)
        except PackageNotFoundError:
            found = "missing"
        if found == "missing" or not wanted.specifier.contains(found, prereleases=True):
            wrong.append(f"{wanted.name} is {found}, must be {wanted.specifier}")
    if wrong:
        raise UserError(f"{'; '.join(wrong)}; `pip install -c constraints.txt -e .` mends it")
    python = ".".join(map(str, sys.version_info[:3]))
    return ", ".join([f"Python {python}", *(f"{name} {version(name)}" for name in _SHOWN)])


def _disk() -> str:
    free = shutil.disk_usage(".").free / 2**30
    text = f"{free:.1f} GiB are free here"
    if free < _LEAST_GIB:
        raise UserError(f"{text}; a run needs {_LEAST_GIB:g}")
    return text


def _mlflow() -> str:
    require_rights()
    champion = registered_champion()
    return f"{shown_uri()} can be used; champion: {f'version {champion.version}' if champion else 'none yet'}"


def _prefect() -> str:
    # Only flows may import Prefect.
    done = subprocess.run(
        [sys.executable, "-m", "flows.reach"], capture_output=True, text=True, timeout=_PREFECT_SECONDS, check=False
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise UserError(lines[-1].removeprefix("error: "))
    return done.stdout.strip()


def _device() -> str:
    import torch

    wanted = load_params().train.accelerator
    names = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    if wanted == "cuda" and not names:
        raise UserError("train.accelerator = 'cuda': no GPU is visible to PyTorch; set auto or cpu")
    return f"{len(names)} ({', '.join(names)})" if names else "none; training takes the CPU"


def _kaggle() -> str:
    require_credentials()
    return "there is a token"


# Those that the training flow makes before it computes anything.
BEFORE_TRAINING = (Check("disk", _disk), Check("MLflow", _mlflow))
ALL = (
    Check("versions", _versions),
    *BEFORE_TRAINING,
    Check("DVC remote", probe_remote),
    Check("Prefect", _prefect),
    Check("GPU", _device),
    Check("Kaggle", _kaggle, needed=False),
)
