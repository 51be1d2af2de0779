"""MLflow's and Prefect's web pages: those of the configured servers, else served to this machine until stopped."""

import signal
import sys
from typing import Annotated

import typer

from flows.messages import calm_logs
from flows.running import stop_on_signals
from flows.servers import HOST, PREFECT_PORT, mlflow_is_elsewhere, mlflow_server, prefect_pages
from pipeline.assembly.run_identity import read_run_id
from pipeline.errors import run_main
from pipeline.loopback import bypass_proxy
from pipeline.paths import MODELS, RUN_FILE


def serve(
    mlflow_port: Annotated[int, typer.Option(min=1, max=65535, help="Port of MLflow's pages.")] = 5000,
    prefect_port: Annotated[int, typer.Option(min=1, max=65535, help="Port of Prefect's pages.")] = PREFECT_PORT,
) -> None:
    """Print the URLs of both servers; start on loopback those that run nowhere yet, and end them together."""
    print("starting the servers of MLflow and Prefect; the first start can take a minute", file=sys.stderr, flush=True)
    with mlflow_server(mlflow_port) as mlflow_url, prefect_pages(prefect_port) as prefect_url:
        print("\n".join([*_mlflow_lines(mlflow_url), f"Prefect: {prefect_url}"]), flush=True)
        here = [] if mlflow_is_elsewhere() else ["MLflow"]
        here += ["Prefect"] if prefect_url == f"http://{HOST}:{prefect_port}" else []
        if here:
            print(f"Ctrl+C ends {'both' if len(here) == 2 else here[0]}", flush=True)
            signal.pause()


def _mlflow_lines(url: str) -> list[str]:
    """Return lines with the address of the list of runs and of the last run; with that of another server as it is."""
    if mlflow_is_elsewhere():
        return [f"MLflow:  {url}"]
    from pipeline.tracking import pages_of

    file = MODELS / RUN_FILE
    pages = pages_of(url, read_run_id(file) if file.exists() else None)
    return [f"{title} {page}" for title, page in zip(("MLflow: ", "  the run of models/:"), pages, strict=False)]


def main() -> None:
    """Serve the pages."""
    stop_on_signals()
    bypass_proxy()
    calm_logs()
    typer.run(serve)


if __name__ == "__main__":
    run_main(main)
