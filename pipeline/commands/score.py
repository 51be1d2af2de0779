"""Commands that judge predictions and models."""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from pipeline.commands.arguments import ModelsFolder, ReportsFolder, label_rules

app = typer.Typer()
command = partial(app.command, rich_help_panel="Score")


@command()
def score(
    predictions: Annotated[Path, typer.Argument(help="A submission: patientId,PredictionString.")],
    labels: Annotated[
        Path, typer.Argument(help="A label table of any name, with patient_groups.csv beside it if there is one.")
    ],
    against: Annotated[
        Path | None, typer.Option(help="Another submission of the same studies: print by how much the first is better.")
    ] = None,
    score_thresh: Annotated[
        list[float] | None,
        typer.Option(help="Only detections above this score count; without it, all do. May be given for each class."),
    ] = None,
    splits: Annotated[Path, typer.Option(help="Where --split is looked up.")] = Path("data/splits.csv"),
    split: Annotated[str | None, typer.Option(help="Score the studies of train, val or test only.")] = None,
    draws: Annotated[int, typer.Option(min=100, help="Bootstrap draws for the intervals.")] = 2000,
    seed: Annotated[int, typer.Option(min=0, help="Which draws.")] = 17,
) -> None:
    """Score a submission file and print JSON."""
    import json
    from math import isfinite

    from pipeline.jobs.score import EVERYTHING, compare_submissions, score_submission

    metrics: object
    if not all(map(isfinite, score_thresh or [])):
        raise typer.BadParameter("must be a number", param_hint="--score-thresh")
    threshold = score_thresh or EVERYTHING
    part = (splits, split) if split else None
    rules = label_rules()
    if against:
        metrics, note = compare_submissions(predictions, against, labels, draws, seed, threshold, part, rules)
    else:
        metrics, note = score_submission(predictions, labels, draws, seed, threshold, part, rules)
    typer.echo(note, err=True)
    typer.echo(json.dumps(metrics, indent=2))


@command()
def register(models: ModelsFolder = Path("models"), reports: ReportsFolder = Path("reports")) -> None:
    """Register models/ and its results in this MLflow store, if they came from another store (dvc pull)."""
    from pipeline.assembly.registration import register as run_registration
    from pipeline.params import load_params
    from pipeline.tracking import shown_uri

    version = run_registration(load_params(), models, reports)
    typer.echo(f"version {version.version} in {shown_uri()}, of run {version.run_id}")


@command()
def promote(
    force: Annotated[
        str | None, typer.Option(metavar="REASON", help="Promote without a comparison; the reason is recorded.")
    ] = None,
    rollback: Annotated[
        bool, typer.Option("--rollback", help="Make the previous champion the champion again.")
    ] = False,
    models: ModelsFolder = Path("models"),
    reports: ReportsFolder = Path("reports"),
) -> None:
    """Make the newest model the champion if it is surely better on the same test studies (params: promote)."""
    if rollback:
        from pipeline.tracking import roll_back

        dropped, back = roll_back()
        typer.echo(f"version {back} is the champion again, not {dropped}")
        return
    from pipeline.jobs.promote import promote as run_promotion
    from pipeline.params import load_params

    typer.echo(str(run_promotion(load_params(), models, reports, force)))
