"""A server as a child process: it is started, watched, and ended together with this process."""

import contextlib
import logging
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections import deque
from collections.abc import Mapping
from pathlib import Path

from flows.prefect_database import whole_database
from pipeline.dvc import guard
from pipeline.errors import UserError
from pipeline.escaping import one_line
from pipeline.loopback import without_proxy

logger = logging.getLogger(__name__)

# The first start creates the database, which takes minutes on a busy machine.
_START_SECONDS = 900
_SAID_AFTER_SECONDS = 20
_STOP_SECONDS = 10
_WATCH_SECONDS = 5
_KEPT_LINES = 200
# The last line of a traceback.
_ERROR_LINE = re.compile(r"[\w.]*(Error|Exception)\b")


def answers(url: str) -> bool:
    """Return whether ``url``, a server on this machine, answers a GET request within 2 seconds; no proxy is used."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        opener.open(url, timeout=2).close()
    except OSError:
        return False
    return True


class Server:
    """A server process in its own session, with a guard: Ctrl+C does not reach it, and it does not outlive us.

    Attributes:
        url: the server's address.
        health: the address that answers while the server works.
    """

    def __init__(
        self,
        command: list[str],
        url: str,
        health: str,
        env: Mapping[str, str] | None = None,
        database: Path | None = None,
    ) -> None:
        self.url, self.health = url, url + health
        self._command, self._env = command, without_proxy(os.environ) | dict(env or {})
        self._database = database
        self._process: subprocess.Popen[bytes] | None = None
        self._words: _Words | None = None
        self._stopping = threading.Event()

    def start(self) -> None:
        """Start the server and wait until it answers; its output until then is used only for the error message.

        Raises:
            UserError: the server does not start.
        """
        with whole_database(self._database) as held:
            self._process = process = subprocess.Popen(
                [sys.executable, "-I", "-S", guard.__file__, *self._command],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                env=self._env,
                start_new_session=True,
                pass_fds=held,
            )
            self._words = words = _Words(process)
            if not self._has_started(process):
                raise UserError(f"{self.url}: the server does not start: {words.reason()}{self._places()}")
            words.are_shown = True

    def _places(self) -> str:
        """Name the places that the server writes to: either disk may be full, and SQLite does not name the file."""
        if self._database is None:
            return ""
        return f" (its database is {self._database}, its temporary files are in {tempfile.gettempdir()})"

    def _has_started(self, process: "subprocess.Popen[bytes]") -> bool:
        begun = time.monotonic()
        said = False
        while (passed := time.monotonic() - begun) < _START_SECONDS and process.poll() is None:
            if answers(self.health):
                return True
            if passed > _SAID_AFTER_SECONDS and not said:
                logger.info("waiting for the server at %s to start", self.url)
                said = True
            time.sleep(0.2)
        return False

    def stop(self) -> None:
        """End the server; its output meanwhile is not shown."""
        self._stopping.set()
        if self._words is not None:
            self._words.are_shown = False
        if self._process is None or self._process.stdin is None:
            return
        self._process.stdin.close()
        try:
            self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.terminate()

    def keep(self) -> None:
        """Start the server again, until `stop`, whenever its process has ended and nothing answers.

        The server that ended may be ours, or one that ran here before.
        """
        while not self._stopping.wait(_WATCH_SECONDS):
            alive = self._process is not None and self._process.poll() is None
            if alive or answers(self.health) or self._stopping.wait(_WATCH_SECONDS) or answers(self.health):
                continue
            logger.warning("the server at %s has ended; starting it again", self.url)
            try:
                self.start()
            except UserError as error:
                logger.warning("%s", error)


class _Words:
    """The lines that a server writes to its standard error.

    Attributes:
        are_shown: whether the lines go to our own standard error; if not, the last ones are kept.
    """

    def __init__(self, process: "subprocess.Popen[bytes]") -> None:
        self._process = process
        self._last: deque[str] = deque(maxlen=_KEPT_LINES)
        self.are_shown = False
        self._reading = threading.Thread(target=self._read, daemon=True)
        self._reading.start()

    def _read(self) -> None:
        assert self._process.stderr is not None
        for raw in self._process.stderr:
            line = raw.decode(errors="replace")
            if self.are_shown:
                with contextlib.suppress(OSError):  # our terminal was closed
                    sys.stderr.write(line)
            elif line.strip():
                self._last.append(line.strip())

    def reason(self) -> str:
        """Return the last line that names an error, else the last line, once the server has ended."""
        self._reading.join(_STOP_SECONDS)
        errors = [line for line in self._last if _ERROR_LINE.match(line)]
        return one_line((errors or [*self._last] or ["no word from it"])[-1])
