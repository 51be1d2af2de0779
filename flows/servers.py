"""MLflow's and Prefect's servers as child processes, on loopback."""

import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from prefect.settings import (
    PREFECT_API_URL,
    PREFECT_SERVER_ALLOW_EPHEMERAL_MODE,
    PREFECT_UI_URL,
    temporary_settings,
)

from flows.dead_runs import close_dead_runs
from flows.prefect_database import database_file
from flows.reach import require_server
from flows.server_process import Server, answers
from pipeline.errors import UserError
from pipeline.redaction import redact

HOST = "127.0.0.1"
PREFECT_PORT = 4200
_PREFECT_HEALTH = "/api/health"


@contextmanager
def prefect_server(port: int) -> Iterator[str]:
    """Run a Prefect server with its scheduler and pages as long as the block lasts; yield its URL.

    A server that runs there already is used, and replaced if it ends.
    """
    url = f"http://{HOST}:{port}"
    # The pages must ask this server, whichever port Prefect's settings name.
    settings = _scheduler_settings() | {"PREFECT_UI_API_URL": f"{url}/api"}
    server = Server(_prefect_command(port), url, _PREFECT_HEALTH, settings, database_file())
    with _running(server, shared=True), temporary_settings({PREFECT_API_URL: f"{url}/api"}):
        close_dead_runs()
        yield url


@contextmanager
def prefect_pages(port: int) -> Iterator[str]:
    """Yield the URL of the pages of the server that Prefect is configured for, else of one on this port.

    Raises:
        UserError: Prefect is configured for another server, which does not answer.
    """
    configured = PREFECT_API_URL.value()
    if not configured or configured.rstrip("/") in (f"http://{HOST}:{port}/api", f"http://localhost:{port}/api"):
        with prefect_server(port) as url:
            yield url
        return
    require_server()
    yield redact(PREFECT_UI_URL.value() or configured.rstrip("/").removesuffix("/api"))


@contextmanager
def mlflow_server(port: int) -> Iterator[str]:
    """Run an MLflow server over the store that runs are written to; yield its URL."""
    from pipeline.tracking import make_database, shown_uri, tracking_uri  # imports MLflow, which takes seconds

    if mlflow_is_elsewhere():
        yield shown_uri()
        return
    store = tracking_uri()
    make_database(store)
    options = ["--host", HOST, "--port", str(port), "--workers", "1", "--backend-store-uri", store]
    # MLflow's workers for language models are of no use here, and end in tracebacks.
    jobs = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    server = Server([*_program("mlflow"), "server", *options], f"http://{HOST}:{port}", "/health", jobs)
    with _running(server, shared=False):
        yield server.url


def mlflow_is_elsewhere() -> bool:
    """Return whether runs are written to a server already, wherever it runs."""
    from pipeline.tracking import tracking_uri

    return tracking_uri().startswith("http")


@contextmanager
def run_server() -> Iterator[None]:
    """Use the server that Prefect is configured for, else run one on any free port as long as the block lasts."""
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
    marks = {"PREFECT_UI_ENABLED": "0", "PREFECT__SERVER_EPHEMERAL": "1", "PREFECT__SERVER_FINAL": "1"}
    server = Server(_prefect_command(port), f"http://{HOST}:{port}", _PREFECT_HEALTH, marks, database_file())
    with _running(server, shared=False), temporary_settings({PREFECT_API_URL: f"{server.url}/api"}):
        yield


@contextmanager
def scheduling_server() -> Iterator[None]:
    """Use the server that Prefect is configured for, else one on this machine, which we start if none runs."""
    if PREFECT_API_URL.value():
        yield
        return
    # A temporary server would do for one run, but it has no scheduler.
    with prefect_server(PREFECT_PORT):
        yield


@contextmanager
def _running(server: Server, shared: bool) -> Iterator[None]:
    running = answers(server.health)
    if running and not shared:
        raise UserError(f"{server.url}: something answers there already; end it or choose another port")
    try:
        if not running:
            server.start()
        threading.Thread(target=server.keep, daemon=True).start()
        yield
    finally:
        server.stop()


def _prefect_command(port: int) -> list[str]:
    """Return what `prefect server start` runs too, with our application around Prefect's."""
    command = [sys.executable, "-m", "uvicorn", "--app-dir", str(Path(__file__).resolve().parents[1]), "--factory"]
    return [*command, "flows.prefect_app:create_app", "--host", HOST, "--port", str(port), "--log-level", "error"]


def _program(name: str) -> list[str]:
    # By its path, because `python -m` would search the working folder first.
    return [sys.executable, str(Path(sys.executable).parent / name)]


def _scheduler_settings() -> dict[str, str]:
    """Return settings that schedule few runs ahead: the times that a machine slept through cause one run, not many."""
    return {
        "PREFECT_SERVER_SERVICES_SCHEDULER_MIN_RUNS": "1",
        "PREFECT_SERVER_SERVICES_SCHEDULER_MIN_SCHEDULED_TIME": "PT1M",
    }
