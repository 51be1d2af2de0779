"""DVC as a subprocess: its output line by line, and no process left behind."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from pipeline.errors import UserError
from pipeline.params import load_params

RAW_DATA = "data/rsna"
# How long the group has to end after SIGINT (a stage closes its MLflow run), then after SIGTERM.
_GRACE_SECONDS = ((signal.SIGINT, 12.0), (signal.SIGTERM, 4.0), (signal.SIGKILL, 5.0))

# Started in the background by a script, this process ignores SIGINT, and what it starts would too.
_INTERRUPTIBLE_DVC = (
    "import runpy, signal; signal.signal(signal.SIGINT, signal.default_int_handler);"
    " runpy.run_module('dvc', run_name='__main__')"
)


def run_dvc(arguments: list[str], on_line: Callable[[str], None], env: Mapping[str, str] | None = None) -> None:
    """Run ``dvc`` and give each line of its output to ``on_line``; see `run_command`."""
    run_command(f"dvc {' '.join(arguments)}", ["-c", _INTERRUPTIBLE_DVC, *arguments], on_line, env)


def run_command(
    name: str, arguments: list[str], on_line: Callable[[str], None], env: Mapping[str, str] | None = None
) -> None:
    """Run this Python with ``arguments`` and give each line of its output to ``on_line``.

    DVC and the stage that it starts have a session of their own, since a SIGTERM to DVC would
    leave the stage alive. Whatever exception arrives here, a signal's included, ends them all.

    Raises:
        UserError: it failed; the message is the reason that the stage or DVC gave.
    """
    process = subprocess.Popen(
        [sys.executable, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env=_environment() | dict(env or {}),
        start_new_session=True,
    )
    lines: list[str] = []
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if text := line.rstrip():
                lines.append(text)
                on_line(text)
        code = process.wait()
    except BaseException:
        stop_group(process)
        raise
    if code:
        raise UserError(f"{name} (exit code {code}): {_reason(lines)}")


def stop_group(process: subprocess.Popen[str]) -> None:
    """End a process and all of its group: gently, then firmly."""
    for number, seconds in _GRACE_SECONDS:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        if _group_ended(process, seconds):
            return


def _group_ended(process: subprocess.Popen[str], seconds: float) -> bool:
    """Wait for the leader, then see whether its group is empty."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(seconds)
    try:
        os.killpg(process.pid, 0)
    except ProcessLookupError:
        return True
    return False


def _environment() -> dict[str, str]:
    # The stages' `python` must be this one, also when the environment was not activated.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    return {**os.environ, "PATH": path, "DVC_NO_ANALYTICS": "1", "PYTHONUNBUFFERED": "1"}


def _reason(lines: list[str]) -> str:
    """The stage's own error line if it has one, else DVC's, else the last line."""
    for start in ("error: ", "ERROR: "):
        found = [line for line in lines if line.startswith(start)]
        if found:
            return found[0].removeprefix(start)
    return lines[-1] if lines else "no output"


def changed(target: str | None = None) -> dict[str, object]:
    """What ``dvc status`` reports as changed, for a target or for the whole pipeline; empty when nothing is."""
    lines: list[str] = []
    run_dvc(["status", "--json", *([target] if target else [])], lines.append)
    for line in lines:
        with contextlib.suppress(json.JSONDecodeError):
            status = json.loads(line)
            if isinstance(status, dict):
                return status
    raise UserError(f"dvc status: no JSON in its output: {' '.join(lines)[:200]}")


def raw_data_state() -> str:
    """``unchanged``, ``missing`` or ``changed``: the raw data folder against its ``.dvc`` file.

    Data elsewhere (``data.dir``) have no such file: they are as they are, and DVC compares them at each stage.
    """
    if load_params().data.dir != RAW_DATA:
        return "unchanged"
    if Path(RAW_DATA).is_symlink():
        place = Path(RAW_DATA).readlink()
        raise UserError(f"{RAW_DATA}: a symbolic link, which DVC cannot add; set data.dir to {place} in params.yaml")
    if not Path(f"{RAW_DATA}.dvc").exists():
        raise UserError(f"{RAW_DATA}.dvc: no such file; put a data set into {RAW_DATA} and run `dvc add {RAW_DATA}`")
    if not Path(RAW_DATA).exists():
        return "missing"
    status = changed(f"{RAW_DATA}.dvc")
    # 'not in cache' means that the folder is as recorded, only DVC's copy is gone.
    return "changed" if "modified" in json.dumps(status) else "unchanged"
