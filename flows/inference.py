"""The inference flow: score what is new in a watched folder, each study once."""

import argparse
from datetime import timedelta
from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_table_artifact
from prefect.states import State

from flows.dvc import run_command
from flows.running import flow_process, run_alone
from flows.serving import serve_flow
from flows.showing import show
from pipeline.delivery.scored import SCORED, read_scored
from pipeline.errors import run_main

MODEL = "models:/rsna-retinanet@champion"
_SHOWN = 20


@task(name="score new studies", retries=1, retry_delay_seconds=10)
def score_new_studies(model: str, folder: str, out: str, study_seconds: float) -> None:
    """Run ``pneumoflow inbox`` in a process of its own: a file that kills its decoder kills no worker."""
    command = ["-m", "pipeline.cli", "inbox", model, folder, "--out", out, "--study-seconds", str(study_seconds)]
    run_command("pneumoflow inbox", command, get_run_logger().info)


@flow(name="inference", validate_parameters=False)
def inference(
    folder: str = "inbox", out: str = "scored", model: str = MODEL, study_seconds: float = 60
) -> State[Any] | None:
    """Score the files of ``folder`` that ``out/scored.csv`` does not have yet, and show the last ones."""
    lock = Path(out) / ".flow.lock"
    return run_alone(lock, "run of the inbox", lambda: _score_and_show(folder, out, model, study_seconds))


def _score_and_show(folder: str, out: str, model: str, study_seconds: float) -> None:
    score_new_studies(model, folder, out, study_seconds)
    rows = read_scored(Path(out) / SCORED)
    last = [{key: row[key] for key in ("scored_at", "file", "image_score", "problem")} for row in rows[-_SHOWN:]]
    if last:
        description = f"The last of {len(rows)} studies"
        show(lambda: create_table_artifact(table=last, key="scored", description=description))


def main() -> None:
    """Score once, or serve the flow every so many seconds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", default="inbox", help="where studies arrive")
    parser.add_argument("--out", default="scored", help="folder of scored.csv")
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--study-seconds", type=float, default=60, help="a study that takes longer is passed over")
    parser.add_argument("--every", type=float, help="seconds between looks; without it, one look")
    chosen = parser.parse_args()
    values = {
        "folder": chosen.folder, "out": chosen.out, "model": chosen.model, "study_seconds": chosen.study_seconds,
    }  # fmt: skip
    if chosen.every is None:
        with flow_process():
            inference(**values)
        return
    serve_flow(inference, "inbox", interval=timedelta(seconds=chosen.every), parameters=values)


if __name__ == "__main__":
    run_main(main)
