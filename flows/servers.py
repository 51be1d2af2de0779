"""MLflow's and Prefect's servers as processes of ours, on loopback."""

import logging
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import prefect
from prefect.settings import PREFECT_API_URL, PREFECT_SERVER_ALLOW_EPHEMERAL_MODE, temporary_settings

from flows import guard
from flows.dead_runs import close_dead_runs
from flows.loopback import without_proxy
from pipeline.errors import UserError

logger = logging.getLogger(__name__)

HOST = "127.0.0.1"
PREFECT_PORT = 4200
_PREFECT_HEALTH = "/api/health"
# A first start makes the database; on a machine with other work that takes minutes.
_START_SECONDS = 900
_SAID_AFTER_SECONDS = 20
_STOP_SECONDS = 10
_WATCH_SECONDS = 5


def answers(url: str) -> bool:
    """Whether a GET of an http URL on this machine succeeds; a proxy is never asked."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        opener.open(url, timeout=2).close()
    except OSError:
        return False
    return True


class Server:
    """A server process, in a session of its own and with a guard: it hears no Ctrl+C, and does not outlive us.

    Attributes:
        url: where it answers.
        health: what it answers when it works.
    """

    def __init__(self, command: list[str], url: str, health: str, env: Mapping[str, str] | None = None) -> None:
        self.url, self.health = url, url + health
        self._command, self._env = command, without_proxy(os.environ) | dict(env or {})
        self._process: subprocess.Popen[bytes] | None = None
        self._stopping = threading.Event()

    def start(self) -> None:
        """Start it and wait until it answers."""
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", guard.__file__, *self._command],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            env=self._env,
            start_new_session=True,
        )
        begun = time.monotonic()
        said = False
        while (passed := time.monotonic() - begun) < _START_SECONDS and self._process.poll() is None:
            if answers(self.health):
                return
            if passed > _SAID_AFTER_SECONDS and not said:
                logger.info("waiting for the server at %s to start", self.url)
                said = True
            time.sleep(0.2)
        raise UserError(f"{self.url}: the server does not start; its message is above")

    def stop(self) -> None:
        """End it."""
        self._stopping.set()
        if self._process is None or self._process.stdin is None:
            return
        self._process.stdin.close()
        try:
            self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.terminate()

    def keep(self) -> None:
        """Start it again whenever it no longer answers, be it ours or one that ran here before; until `stop`."""
        while not self._stopping.wait(_WATCH_SECONDS):
            alive = self._process is not None and self._process.poll() is None
            if alive or answers(self.health) or self._stopping.wait(_WATCH_SECONDS) or answers(self.health):
                continue
            logger.warning("the server at %s has ended; starting it again", self.url)
            try:
                self.start()
            except UserError as error:
                logger.warning("%s", error)


@contextmanager
def prefect_server(port: int) -> Iterator[str]:
    """A Prefect server with its scheduler and pages, as long as the block lasts; yields its URL.

    One that runs there already is used, and replaced should it end.
    """
    url = f"http://{HOST}:{port}"
    command = [*_program("prefect"), "server", "start", "--host", HOST, "--port", str(port)]
    server = Server(command, url, _PREFECT_HEALTH, _scheduler_settings())
    with _running(server, shared=True), temporary_settings({PREFECT_API_URL: f"{url}/api"}):
        close_dead_runs()
        yield url


@contextmanager
def mlflow_server(port: int) -> Iterator[str]:
    """An MLflow server over the store that runs are written to; yields its URL."""
    from pipeline.tracking import shown_uri, tracking_uri  # imports MLflow, which takes seconds

    store = tracking_uri()
    if store.startswith("http"):
        yield shown_uri()  # the runs are on a server already
        return
    options = ["--host", HOST, "--port", str(port), "--workers", "1", "--backend-store-uri", store]
    server = Server([*_program("mlflow"), "server", *options], f"http://{HOST}:{port}", "/health")
    with _running(server, shared=False):
        yield server.url


@contextmanager
def run_server() -> Iterator[None]:
    """The server that Prefect is set to, else one for as long as the block lasts, on any free port."""
    if PREFECT_API_URL.value():
        yield
        return
    if not PREFECT_SERVER_ALLOW_EPHEMERAL_MODE.value():
        raise UserError(
            "PREFECT_API_URL: not set, and PREFECT_SERVER_EPHEMERAL_ENABLED forbids a temporary server; set one of both"
        )
    with socket.socket() as free:
        free.bind((HOST, 0))
        port = free.getsockname()[1]
    # As Prefect starts its own temporary server, which dies of our Ctrl+C before it is told of our end.
    command = [sys.executable, "-m", "uvicorn", "--app-dir", str(prefect.__module_path__.parent), "--factory"]
    command += ["prefect.server.api.server:create_app", "--host", HOST, "--port", str(port), "--log-level", "error"]
    marks = {"PREFECT_UI_ENABLED": "0", "PREFECT__SERVER_EPHEMERAL": "1", "PREFECT__SERVER_FINAL": "1"}
    server = Server(command, f"http://{HOST}:{port}", _PREFECT_HEALTH, marks)
    with _running(server, shared=False), temporary_settings({PREFECT_API_URL: f"{server.url}/api"}):
        yield


@contextmanager
def scheduling_server() -> Iterator[None]:
    """The server that Prefect is set to, else one on this machine: running already, or ours while we serve."""
    if PREFECT_API_URL.value():
        yield
        return
    # A temporary server would do for one run, but it has no scheduler.
    with prefect_server(PREFECT_PORT):
        yield


@contextmanager
def _running(server: Server, shared: bool) -> Iterator[None]:
    found = answers(server.health)
    if found and not shared:
        raise UserError(f"{server.url}: something answers there already; end it or choose another port")
    try:
        if not found:
            server.start()
        threading.Thread(target=server.keep, daemon=True).start()
        yield
    finally:
        server.stop()


def _program(name: str) -> list[str]:
    # By its file, since `python -m` would look into the working folder first.
    return [sys.executable, str(Path(sys.executable).parent / name)]


def _scheduler_settings() -> dict[str, str]:
    """Few runs on the list at a time: what a machine slept through is run once, not as often as it was missed."""
    return {
        "PREFECT_SERVER_SERVICES_SCHEDULER_MIN_RUNS": "1",
        "PREFECT_SERVER_SERVICES_SCHEDULER_MIN_SCHEDULED_TIME": "PT1M",
    }
