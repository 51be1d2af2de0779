"""MLflow's and Prefect's web pages, served to this machine only, until stopped."""

import signal
from typing import Annotated

import typer

from flows.messages import calm_logs
from flows.running import stop_on_signals
from flows.servers import PREFECT_PORT, mlflow_server, prefect_server
from pipeline.errors import run_main
from pipeline.loopback import bypass_proxy


def serve(
    mlflow_port: Annotated[int, typer.Option(min=1, max=65535)] = 5000,
    prefect_port: Annotated[int, typer.Option(min=1, max=65535)] = PREFECT_PORT,
) -> None:
    """Start both servers on loopback, print their URLs, and end them together."""
    with mlflow_server(mlflow_port) as mlflow_url, prefect_server(prefect_port) as prefect_url:
        print(f"MLflow:  {mlflow_url}\nPrefect: {prefect_url}\nCtrl+C ends both", flush=True)
        signal.pause()


def main() -> None:
    """Serve the pages."""
    stop_on_signals()
    bypass_proxy()
    calm_logs()
    typer.run(serve)


if __name__ == "__main__":
    run_main(main)
