"""The inference flow, which scores the new studies in a watched folder, each study once."""

from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any

import typer
from prefect import flow, get_run_logger, task
from prefect.artifacts import create_table_artifact
from prefect.states import State

from flows.running import flow_process, run_alone
from flows.serving import serve_flow
from flows.showing import show
from pipeline.delivery.scored import SCORED, read_scored
from pipeline.dvc.command import run_command
from pipeline.errors import UserError, run_main

MODEL = "models:/rsna-retinanet@champion"
_SHOWN = 20


@task(name="score new studies", retries=1, retry_delay_seconds=10)
def score_new_studies(model: str, folder: str, out: str, study_seconds: float, *, answers: bool) -> None:
    """Run ``pneumoflow inbox`` in a separate process, so that a file that kills its decoder kills no worker."""
    command = ["-m", "pipeline.cli", "inbox", model, folder, "--out", out, "--study-seconds", str(study_seconds)]
    run_command("pneumoflow inbox", [*command, *(["--answers"] if answers else [])], get_run_logger().info)


@task(name="send answers")
def send_answers(archive: str, out: str) -> None:
    """Run ``pneumoflow send``; answers that the archive does not take now wait for the next run, with a warning."""
    logger = get_run_logger()
    try:
        run_command("pneumoflow send", ["-m", "pipeline.cli", "send", archive, out], logger.info)
    except UserError as error:
        logger.warning("%s; the next run tries again", error)


@flow(name="inference", validate_parameters=False)
def inference(
    folder: str = "inbox", out: str = "scored", model: str = MODEL, study_seconds: float = 60, archive: str = ""
) -> State[Any] | None:
    """Score the files of ``folder`` that are not in ``out/scored.csv`` yet, and show the last rows of that table.

    If there is an ``archive``, answers are sent to it; see `pneumoflow send`.
    """
    lock = Path(out) / ".flow.lock"
    return run_alone(lock, "run of the inbox", lambda: _score_and_show(folder, out, model, study_seconds, archive))


def _score_and_show(folder: str, out: str, model: str, study_seconds: float, archive: str) -> None:
    score_new_studies(model, folder, out, study_seconds, answers=bool(archive))
    if archive:
        send_answers(archive, out)
    rows = read_scored(Path(out) / SCORED)
    last = [{key: row[key] for key in ("scored_at", "file", "image_score", "problem")} for row in rows[-_SHOWN:]]
    if last:
        description = f"The last of {len(rows)} studies"
        show(lambda: create_table_artifact(table=last, key="scored", description=description))


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def look(
    folder: Annotated[str, typer.Argument(help="Where studies arrive.")] = "inbox",
    out: Annotated[str, typer.Option(help="The folder of scored.csv.")] = "scored",
    model: Annotated[str, typer.Option(help="A folder, or a model in MLflow.")] = MODEL,
    study_seconds: Annotated[
        float, typer.Option(min=0.1, help="A study that takes longer to read is passed over.")
    ] = 60,
    archive: Annotated[
        str, typer.Option("--answer", help="Send answers to AETITLE@HOST:PORT, or to a DICOMweb address.")
    ] = "",
    every: Annotated[
        float | None, typer.Option(min=1, help="Seconds between two checks of the folder; without it, one check.")
    ] = None,
) -> None:
    """Score once, or, with --every, serve the flow at that interval."""
    values: dict[str, Any] = {"folder": folder, "out": out, "model": model, "study_seconds": study_seconds}
    values["archive"] = archive
    if every is None:
        with flow_process():
            inference(**values)
        return
    serve_flow(inference, "inbox", timedelta(seconds=every), values)


if __name__ == "__main__":
    run_main(app)
