"""A real terminal around a command."""

import contextlib
import fcntl
import os
import select
import signal
import subprocess
import termios
import threading
import time
from pathlib import Path

from tests.flows.family import Family


class Terminal:
    """A command that runs on a terminal of its own, which shows its output.

    Attributes:
        process: the command.
        family: the command and all that it has started.
        text: all that the terminal has shown.
    """

    def __init__(self, command, folder, env):
        self.family = Family()
        self._master, slave = os.openpty()
        self._closing = False
        self.text = ""
        self.process = subprocess.Popen(
            command,
            cwd=folder,
            env=self.family.env({**env, "TERM": "xterm", "COLUMNS": "200"}),
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            preexec_fn=_take_terminal,
        )
        os.close(slave)
        self._reading = threading.Thread(target=self._read, daemon=True)
        self._reading.start()

    def _read(self):
        # Linux answers with EIO once no process has the terminal open.
        with contextlib.suppress(OSError):
            while not self._closing:
                # A blocking read would keep the terminal open after `close`.
                if select.select([self._master], [], [], 0.1)[0]:
                    self.text += os.read(self._master, 2**16).decode(errors="replace")

    def press_ctrl_c(self):
        """Press Ctrl+C: the terminal sends SIGINT to all processes of the foreground group, as a user's does."""
        os.write(self._master, b"\x03")

    def close(self):
        """Close the terminal, as a closed window or a lost connection does: SIGHUP."""
        self._closing = True
        self._reading.join()
        os.close(self._master)

    def wait_for(self, condition, seconds=180):
        """Wait until ``condition`` is true."""
        end = time.monotonic() + seconds
        while not condition():
            assert self.process.poll() is None, self.text
            assert time.monotonic() < end, self.text
            time.sleep(0.2)

    def wait(self, seconds):
        """Wait until the command has ended; return its exit status and the seconds that this took."""
        begun = time.monotonic()
        status = self.process.wait(seconds)
        self._reading.join(5)
        return status, time.monotonic() - begun

    def end(self):
        """Kill all processes and close the terminal, however the test ended."""
        self.family.kill()
        if not self._closing:
            self.close()


def _take_terminal():
    # pytest may run under nohup or in the background of a script, where these signals are ignored.
    for number in (signal.SIGHUP, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def started_training(folder):
    """Return whether a training in ``folder`` that has not ended has written a checkpoint."""
    checkpoints = Path(folder, "checkpoints").glob("*/step-*")
    return any(not (path.parent / "ended").exists() and path.parent.suffix != ".removed" for path in checkpoints)
