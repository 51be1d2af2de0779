"""The monitoring flow: are the studies that arrive still like those that the champion was validated on?"""

from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.deployments import run_deployment
from prefect.events import emit_event

from flows.dvc import run_command
from flows.messages import one_line_errors
from pipeline.documents import read_json_object
from pipeline.errors import run_main
from pipeline.params import load_params

DRIFT_EVENT = "pneumoflow.drift"
RETRAINING = "training/nightly"
_DRIFT = Path("reports/drift.json")


@task(name="compare new studies")
def compare_new_studies(scored: str) -> dict[str, Any]:
    """Run ``pneumoflow monitor``."""
    run_command("pneumoflow monitor", ["-m", "pipeline.cli", "monitor", scored], get_run_logger().info)
    return read_json_object(_DRIFT)


@task(name="publish drift")
def publish_drift(found: dict[str, Any]) -> None:
    """Show the numbers as an artifact; past the limits, raise an event that automations can act on."""
    rows = [{key: one[key] for key in ("feature", "psi", "ks", "p_value", "past")} for one in found["drifts"]]
    create_table_artifact(table=rows, key="drift", description=f"{found['studies']} new studies against the reference")
    if not found["past"]:
        return
    moved = [one["feature"] for one in found["drifts"] if one["past"]]
    resource = {"prefect.resource.id": "pneumoflow.studies", "prefect.resource.name": "new studies"}
    emit_event(DRIFT_EVENT, resource=resource, payload={"features": moved, "studies": found["studies"]})
    text = f"Past the limits: **{', '.join(moved)}**. The page is `{_DRIFT.with_suffix('.html').resolve()}`."
    create_markdown_artifact(markdown=text, key="drift-alarm", description="New studies differ from the reference")


@flow(name="monitoring", validate_parameters=False)
def monitoring(scored: str = "scored") -> bool:
    """Compare, publish, and retrain if ``monitor.retrain`` says so; returns whether anything is past its limits."""
    one_line_errors()
    rules = load_params().monitor
    found = compare_new_studies(scored)
    publish_drift(found)
    if found["past"] and rules.retrain:
        get_run_logger().info("past the limits: running %s", RETRAINING)
        run_deployment(RETRAINING, timeout=0)  # starts it, and does not wait
    return bool(found["past"])


def main() -> None:
    """Check once."""
    monitoring()


if __name__ == "__main__":
    run_main(main)
