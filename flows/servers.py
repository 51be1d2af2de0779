"""MLflow's and Prefect's servers as processes of ours, on loopback."""

import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from prefect.settings import PREFECT_API_URL, temporary_settings

from pipeline.errors import UserError

HOST = "127.0.0.1"
PREFECT_PORT = 4200
_START_SECONDS = 120
_STOP_SECONDS = 15


@contextmanager
def prefect_server(port: int) -> Iterator[str]:
    """A Prefect server with its scheduler and pages; yields its URL."""
    command = ["prefect", "server", "start", "--host", HOST, "--port", str(port)]
    with _server(command, f"http://{HOST}:{port}", "/api/health") as url:
        yield url


@contextmanager
def mlflow_server(port: int) -> Iterator[str]:
    """An MLflow server over the store that runs are written to; yields its URL."""
    store = os.environ.get("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db")
    if store.startswith("http"):
        yield store  # the runs are on a server already
        return
    command = ["mlflow", "server", "--host", HOST, "--port", str(port), "--workers", "1", "--backend-store-uri", store]
    with _server(command, f"http://{HOST}:{port}", "/health") as url:
        yield url


def answers(url: str) -> bool:
    """Whether a GET of an http URL succeeds."""
    try:
        urllib.request.urlopen(url, timeout=2).close()  # noqa: S310 - our own http URL
    except OSError:
        return False
    return True


@contextmanager
def _server(command: list[str], url: str, health: str) -> Iterator[str]:
    if answers(url + health):
        raise UserError(f"{url}: something answers there already; end it or choose another port")
    program = Path(sys.executable).parent / command[0]
    # A session of its own: Ctrl+C reaches us alone, and we end the server in order.
    process = subprocess.Popen([program, *command[1:]], stdout=subprocess.DEVNULL, start_new_session=True)
    try:
        _wait_until_up(process, url, health)
        yield url
    finally:
        process.terminate()
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()


def _wait_until_up(process: subprocess.Popen[bytes], url: str, health: str) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        if answers(url + health):
            return
        time.sleep(0.5)
    raise UserError(f"{url}: the server does not start; its message is above")


@contextmanager
def scheduling_server() -> Iterator[None]:
    """The server that Prefect is set to, else one on this machine: running already, or ours while we serve."""
    if PREFECT_API_URL.value():
        yield
        return
    local = f"http://{HOST}:{PREFECT_PORT}"
    with ExitStack() as stack:
        # Prefect's temporary server would do for one run, but it has no scheduler.
        url = local if answers(f"{local}/api/health") else stack.enter_context(prefect_server(PREFECT_PORT))
        with temporary_settings({PREFECT_API_URL: f"{url}/api"}):
            yield
