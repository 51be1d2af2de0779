"""The monitoring flow, which checks whether new studies are still like those that the champion was validated on."""

from pathlib import Path
from typing import Annotated, Any

import typer
from prefect import flow, get_run_logger, task
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.deployments import run_deployment
from prefect.events import emit_event
from prefect.states import Completed, State

from flows.reach import wait_for_server
from flows.running import flow_process, run_alone
from flows.showing import show
from pipeline.delivery.scored import SCORED
from pipeline.documents import read_json_object
from pipeline.dvc.command import run_command
from pipeline.errors import run_main
from pipeline.params import load_params

DRIFT_EVENT = "pneumoflow.drift"
RETRAINING = "training/nightly"
LOCK = Path(".pneumoflow/monitoring.lock")
_DRIFT = Path("reports/drift.json")
_SCORED = "scored"  # where `flows.inference` writes by default


@task(name="compare new studies")
def compare_new_studies(scored: str) -> dict[str, Any]:
    """Run ``pneumoflow monitor``."""
    run_command("pneumoflow monitor", ["-m", "pipeline.cli", "monitor", scored], get_run_logger().info)
    return read_json_object(_DRIFT)


@task(name="publish drift")
def publish_drift(monitored: dict[str, Any]) -> None:
    """Show the numbers as an artifact; if a limit is exceeded, emit an event that automations can act on."""
    rows = [{key: one[key] for key in ("feature", "psi", "ks", "p_value", "past")} for one in monitored["drifts"]]
    description = f"{monitored['studies']} new studies against the reference"
    show(lambda: create_table_artifact(table=rows, key="drift", description=description))
    if not monitored["past"]:
        return
    moved = [one["feature"] for one in monitored["drifts"] if one["past"]]
    resource = {"prefect.resource.id": "pneumoflow.studies", "prefect.resource.name": "new studies"}
    payload = {"features": moved, "studies": monitored["studies"]}
    show(lambda: emit_event(DRIFT_EVENT, resource=resource, payload=payload))
    text = f"Past the limits: **{', '.join(moved)}**. The page is `{_DRIFT.with_suffix('.html').resolve()}`."
    alarm = "New studies differ from the reference"
    show(lambda: create_markdown_artifact(markdown=text, key="drift-alarm", description=alarm))


@flow(name="monitoring", validate_parameters=False)
def monitoring(scored: str = _SCORED) -> bool | State[Any]:
    """Compare, publish, and retrain on drift if ``monitor.retrain`` is set; return whether any limit is exceeded."""
    return run_alone(LOCK, "run of monitoring", lambda: _monitor(scored))


def _monitor(scored: str) -> bool | State[Any]:
    limits = load_params().monitor
    if scored == _SCORED and not (Path(scored) / SCORED).exists():
        return Completed(message="no study has been scored yet: there is no scored/scored.csv")
    monitored = compare_new_studies(scored)
    if not monitored["drifts"]:
        return Completed(message=f"{monitored['studies']} new studies, too few to compare")
    publish_drift(monitored)
    if monitored["past"] and limits.retrain:
        get_run_logger().info("past the limits: running %s", RETRAINING)
        wait_for_server()
        run_deployment(RETRAINING, timeout=0)  # starts it, and does not wait
    return bool(monitored["past"])


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def run(scored: Annotated[str, typer.Argument(help="The folder of scored.csv.")] = _SCORED) -> None:
    """Compare new studies with those that the champion was validated on, once (params: monitor)."""
    with flow_process():
        monitoring(scored)


if __name__ == "__main__":
    run_main(app)
