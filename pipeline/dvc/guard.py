"""A process between a flow and the command that it runs: when the flow ends in any way, it ends the command.

`run_command` starts this file with a pipe as its standard input, which the operating system closes when
the flow is killed. The file imports only the standard library, because it is started for every command.
"""

import contextlib
import os
import select
import signal
import subprocess
import sys
from types import FrameType

# Seconds that the process group has to end after SIGINT (a stage closes its MLflow run), SIGTERM and SIGKILL.
GRACE_SECONDS = ((signal.SIGINT, 12.0), (signal.SIGTERM, 4.0), (signal.SIGKILL, 5.0))
_POLL_SECONDS = 0.1


def main(command: list[str]) -> int:
    """Run ``command`` until it ends or standard input is closed; then end the rest of its process group."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # Unlike SIG_IGN, a handler is not inherited: the command gets signals even if we run in the background.
        signal.signal(number, _pass_over)
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, process_group=0)
    while child.poll() is None and not _parent_is_gone():
        pass
    stop_group(child)
    code = child.wait()
    return code if code >= 0 else 128 - code


def _pass_over(_: int, __: FrameType | None) -> None:
    """Do nothing, because this process ends when the command has ended."""


def _parent_is_gone() -> bool:
    readable, _, _ = select.select([sys.stdin], [], [], _POLL_SECONDS)
    return bool(readable) and not os.read(sys.stdin.fileno(), 1)


def stop_group(leader: subprocess.Popen[bytes]) -> None:
    """End a process and its whole group: gently, then by force. An empty group takes no time."""
    for number, seconds in GRACE_SECONDS:
        try:
            os.killpg(leader.pid, number)
        except ProcessLookupError:
            return
        if _group_ended(leader, seconds):
            return


def _group_ended(leader: subprocess.Popen[bytes], seconds: float) -> bool:
    """Wait for the leader, then return whether its group is empty."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        leader.wait(seconds)
    try:
        os.killpg(leader.pid, 0)
    except ProcessLookupError:
        return True
    return False


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
