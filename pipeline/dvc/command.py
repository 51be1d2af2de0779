"""DVC as a subprocess: its output is passed on line by line, and no process is left behind."""

import contextlib
import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pipeline.dvc import guard
from pipeline.dvc.lock import release_dead, require_free
from pipeline.errors import UserError
from pipeline.escaping import shortened
from pipeline.folder_lock import held_locks
from pipeline.loopback import without_proxy

# The end of a DVC error message -> the remedy, which DVC does not name.
_CURES = {
    os.strerror(errno.ENOSPC): "the disk of this folder or that of DVC's cache is full (`dvc cache dir` names it)",
    "is not a git repository": "`git init` makes it one, `dvc config core.no_scm true` lets DVC work without",
}
# The longest time that the guard needs, and a little more.
_STOP_SECONDS = sum(seconds for _, seconds in guard.GRACE_SECONDS) + 2


def run_dvc(arguments: list[str], on_line: Callable[[str], None], env: Mapping[str, str] | None = None) -> None:
    """Run ``dvc`` and give each line of its output to ``on_line``; see `run_command`.

    Raises:
        BusyError: another ``dvc`` command is working on the same files.
    """
    release_dead()
    run_command(f"dvc {' '.join(arguments)}", ["-m", "dvc", *arguments], on_line, env)


def run_command(
    name: str, arguments: list[str], on_line: Callable[[str], None], env: Mapping[str, str] | None = None
) -> None:
    """Run this Python with ``arguments`` and give each line of its output to ``on_line``.

    The command runs in its own session, together with a guard. Any exception here, also one raised by a signal,
    and the death of this process end all processes that the command has started. The guard keeps the folder's
    lock until then.

    Raises:
        BusyError: the command is, or has started, a ``dvc`` command, and another one is working on the same files.
        UserError: the command failed; the message contains the reason that the stage or DVC gave.
    """
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", guard.__file__, sys.executable, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env=_environment() | dict(env or {}),
        start_new_session=True,
        pass_fds=held_locks(),
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
        _stop(process)
        raise
    finally:
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            pipe.close()
    if code:
        require_free(lines)
        raise UserError(f"{name} (exit code {code}): {_reason(lines)}")


def _stop(process: subprocess.Popen[str]) -> None:
    """Tell the guard to end the command, and wait until it has ended."""
    assert process.stdin is not None
    process.stdin.close()
    try:
        process.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def _environment() -> dict[str, str]:
    # `python` in a stage must be this interpreter, even if its environment was not activated. DVC runs stages with
    # SHELL: a service account's shell refuses every command, and a shell that does not exist fails.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    own = {"PATH": path, "SHELL": "/bin/sh", "DVC_NO_ANALYTICS": "1", "PYTHONUNBUFFERED": "1"}
    return without_proxy(os.environ) | own


def _reason(lines: list[str]) -> str:
    """Return the stage's own error line if there is one, else DVC's, else the last line."""
    for start in ("error: ", "ERROR: "):
        reasons = [line for line in lines if line.startswith(start)]
        if reasons:
            said = reasons[0].removeprefix(start)
            return "; ".join([said, *(cure for end, cure in _CURES.items() if said.endswith(end))])
    return lines[-1] if lines else "no output"


def changed(target: str | None = None, env: Mapping[str, str] | None = None) -> dict[str, object]:
    """Return the changes that ``dvc status`` reports for a target or the whole pipeline; empty if there are none."""
    return read_status(["status", *([target] if target else [])], env)


def read_status(command: list[str], env: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Return the JSON object that a ``dvc`` command prints with ``--json``."""
    lines: list[str] = []
    run_dvc([*command, "--json"], lines.append, env)
    for line in lines:
        with contextlib.suppress(json.JSONDecodeError):
            status = json.loads(line)
            if isinstance(status, dict):
                return status
    raise UserError(f"dvc {' '.join(command)}: no JSON in its output: {shortened(' '.join(lines))}")
