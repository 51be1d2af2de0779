"""MLflow's and Prefect's web pages on this machine alone, until stopped."""

import os
import subprocess
import sys
import time
import urllib.request
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from pipeline.errors import UserError, run_main

HOST = "127.0.0.1"
_START_SECONDS = 120
_STOP_SECONDS = 15


def serve(
    mlflow_port: Annotated[int, typer.Option(min=1, max=65535)] = 5000,
    prefect_port: Annotated[int, typer.Option(min=1, max=65535)] = 4200,
) -> None:
    """Start both servers on loopback, print their URLs, and end them together."""
    store = os.environ.get("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db")
    bin_folder = Path(sys.executable).parent
    mlflow: list[str | Path] = [
        bin_folder / "mlflow",
        "server",
        "--host",
        HOST,
        "--port",
        str(mlflow_port),
        "--backend-store-uri",
        store,
    ]
    prefect: list[str | Path] = [bin_folder / "prefect", "server", "start", "--host", HOST, "--port", str(prefect_port)]
    with ExitStack() as stack:
        servers = {
            f"http://{HOST}:{mlflow_port}": stack.enter_context(_Server([*mlflow, "--workers", "1"], "/health")),
            f"http://{HOST}:{prefect_port}": stack.enter_context(_Server(prefect, "/api/health")),
        }
        for url, server in servers.items():
            server.wait_until_up(url)
        print("MLflow:  {}\nPrefect: {}\nCtrl+C ends both".format(*servers), flush=True)
        while all(server.running for server in servers.values()):
            time.sleep(1)
        raise UserError("a server ended by itself; its message is above")


class _Server:
    """A server process that ends with its context."""

    def __init__(self, command: list[str | Path], health: str) -> None:
        self._command, self._health = command, health

    def __enter__(self) -> "_Server":
        # A session of its own: Ctrl+C reaches us alone, and we end the servers in order.
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL, start_new_session=True)
        return self

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def wait_until_up(self, url: str) -> None:
        """Wait for the health page.

        Raises:
            UserError: the server ended, or did not answer in time.
        """
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline and self.running:
            try:
                urllib.request.urlopen(url + self._health, timeout=2).close()  # noqa: S310 - our own http URL
            except OSError:
                time.sleep(0.5)
            else:
                return
        raise UserError(f"{url}: {self._command[0]} does not answer; is the port taken?")

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        try:
            self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()


def main() -> None:
    """Serve the pages."""
    typer.run(serve)


if __name__ == "__main__":
    run_main(main)
