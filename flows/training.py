"""The training flow: it gets the raw data from DVC, then runs every stage that has something to do."""

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID

import typer
from prefect import flow, get_run_logger, runtime, task
from prefect.artifacts import (
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.states import Completed, State

from flows.raw_data import RAW_DATA, raw_data_state, verify_raw_data
from flows.running import flow_process, run_alone
from flows.showing import show
from pipeline.documents import read_json_object
from pipeline.dvc.command import changed, run_command, run_dvc
from pipeline.dvc.repository import require_repository
from pipeline.errors import UserError, run_main
from pipeline.files import write_text
from pipeline.folder_lock import RUN_LOCK
from pipeline.params import load_params
from pipeline.paths import METRICS, REPORTS

STAGES = ("preprocess", "split", "train", "evaluate")
# Exists from the first stage until the new model is judged: the next run finishes one that was killed in between.
UNFINISHED = Path(".pneumoflow/training_unfinished")
NOTHING_TO_DO = "nothing to do: data, params and code are as they were when the pipeline last ran"
REPORT = REPORTS / "report.html"
PROMOTION = REPORTS / "promotion.json"
# Seconds between the tries of a task that needs a server. Together they outlast a restart of it.
_OUTAGE = [5.0, 10.0, 20.0, 40.0, 60.0]
# Seconds for which requests to MLflow are repeated: more than in a command, because nobody watches a night's run.
_PATIENCE_SECONDS = "150"
_EPOCH = re.compile(r"epoch (\d+)/(\d+)(  step )?")
_SHOWN = ("rsna_score", "map", "map_50", "map_75", "auroc", "froc_1")


@task(name="pull data", retries=len(_OUTAGE), retry_delay_seconds=_OUTAGE)
def pull_data() -> None:
    """Bring the raw data set to the version that its ``.dvc`` file names."""
    run_dvc(["pull", f"{RAW_DATA}.dvc"], get_run_logger().info)


@task(name="check rights")
def check_rights() -> None:
    """Find out whether the run can be logged and the model registered, before hours are spent on it."""
    from pipeline.jobs.doctor import BEFORE_TRAINING, doctor

    doctor(BEFORE_TRAINING, get_run_logger().info)


@task(name="stage", task_run_name="{name}")
def run_stage(name: str) -> None:
    """Let DVC run one stage if anything that the stage depends on has changed."""
    progress = _Progress(get_run_logger().info)
    run_dvc(["repro", "--single-item", name], progress.line, {"PNEUMOFLOW_FLOW_RUN_ID": str(runtime.flow_run.id)})


class _Progress:
    """A logger of a stage's output lines, which shows the stage's epochs as a progress artifact."""

    def __init__(self, log: Callable[[str], None]) -> None:
        self._log = log
        self._artifact: UUID | None = None

    def line(self, text: str) -> None:
        """Log one line of output, and show the progress that it reports."""
        self._log(text)
        if not (match := _EPOCH.match(text)):
            return
        # A line that names a step belongs to an epoch that is not over.
        done = int(match[1]) - (match[3] is not None)
        share = 100 * done / int(match[2])
        show(lambda: self._show(share, text))

    def _show(self, share: float, text: str) -> None:
        if self._artifact is None:
            artifact = create_progress_artifact(share, key="training-progress", description="Epochs")
            self._artifact = artifact if isinstance(artifact, UUID) else None
        else:
            update_progress_artifact(self._artifact, share, description=text)


@task(name="publish results")
def publish_results() -> None:
    """Publish the metrics, and the places of the MLflow run and the report, as Prefect artifacts."""
    metrics = read_json_object(REPORTS / METRICS)
    rows = [
        {"metric": key, **{split: _with_interval(summary, key) for split, summary in metrics.items()}} for key in _SHOWN
    ]
    description = "Metrics with their 95 % intervals (patient bootstrap)"
    show(lambda: create_table_artifact(table=rows, key="metrics", description=description))
    text = f"- MLflow: {_mlflow_place()}\n- Report: `{REPORT.resolve()}`"
    show(lambda: create_markdown_artifact(markdown=text, key="results", description="Where the results lie"))


@task(name="promote")
def promote() -> None:
    """Compare the new model with the champion, and let it take the champion's place if it is surely better."""
    run_command("pneumoflow promote", ["-m", "pipeline.jobs.promote"], get_run_logger().info)
    decision = read_json_object(PROMOTION)
    what = "is the champion" if decision["promoted"] else f"does not replace version {decision['champion']}"
    lines = [f"Version {decision['challenger']} {what}.", "", *(f"- {reason}" for reason in decision["reasons"])]
    text = "\n".join(lines)
    show(lambda: create_markdown_artifact(markdown=text, key="promotion", description="Champion or not, and why"))


@task(name="keep results", retries=len(_OUTAGE), retry_delay_seconds=_OUTAGE)
def keep_results() -> None:
    """Push the run's files to DVC's remote and ``dvc.lock`` to MLflow, so that others can restore exactly this run."""
    run_command("pneumoflow keep", ["-m", "pipeline.cli", "keep"], get_run_logger().info)


@flow(name="training", validate_parameters=False)
def training() -> State[Any] | None:
    """Pull the raw data, run the stages that have something to do, publish and keep the results, promote the model."""
    return run_alone(RUN_LOCK, "training run", _run_pipeline)


def _run_pipeline() -> State[Any] | None:
    os.environ.setdefault("PNEUMOFLOW_PATIENCE", _PATIENCE_SECONDS)
    load_params()  # a wrong key is reported before anything is fetched
    require_repository()
    state = raw_data_state()
    if state == "changed":
        raise UserError(
            f"{RAW_DATA}: differs from {RAW_DATA}.dvc; `dvc add {RAW_DATA}` records it as the data to train on,"
            f" `dvc checkout {RAW_DATA}` brings the recorded version back"
        )
    if state == "missing":
        pull_data()
    verify_raw_data()
    if not changed() and not UNFINISHED.exists():
        get_run_logger().info(NOTHING_TO_DO)
        return Completed(message=NOTHING_TO_DO)
    check_rights()
    write_text(UNFINISHED, f"{runtime.flow_run.id}\n")
    for name in STAGES:
        run_stage(name)
    publish_results()
    promote()
    keep_results()
    UNFINISHED.unlink(missing_ok=True)
    return None


def summary() -> str:
    """Return the test metrics, the place of the MLflow run and the path of the report, as text."""
    test = read_json_object(REPORTS / METRICS)["test"]
    lines = ["", f"Test split: {test['images']} images of {test['patients']} patients"]
    lines += [f"  {key:<12} {_with_interval(test, key)}" for key in _SHOWN]
    return "\n".join([*lines, f"MLflow: {_mlflow_place()}", f"Report: {REPORT.resolve()}"])


def _with_interval(values: dict[str, float | None], key: str) -> str:
    value, low, high = values[key], values[f"{key}_low"], values[f"{key}_high"]
    if value is None or low is None or high is None:
        return "not defined"
    return f"{value:.3f} ({low:.3f} to {high:.3f})"


def _mlflow_place() -> str:
    from pipeline.tracking import run_place

    return run_place(read_json_object(Path("models/mlflow_run.json"))["run_id"])


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def run() -> None:
    """Run the training flow once and print its results.

    It pulls the raw data, runs the stages that have something to do, and promotes the model if it is surely better.
    `params.yaml` has all settings.
    """
    with flow_process():
        training()
    print(summary(), flush=True)


if __name__ == "__main__":
    run_main(app)
