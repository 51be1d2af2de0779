"""Commands around training: searches, comparisons, and the upkeep of runs."""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from pipeline.errors import UserError

app = typer.Typer()
command = partial(app.command, rich_help_panel="Train")


@command("find-lr")
def find_lr(
    out: Annotated[Path, typer.Option(help="Folder for learning_rate.png and .csv.")] = Path("reports"),
    steps: Annotated[int, typer.Option(min=10, help="Training steps, one for each rate.")] = 100,
    low: Annotated[float, typer.Option(min=1e-12, help="The first rate.")] = 1e-5,
    high: Annotated[float, typer.Option(min=1e-12, help="The last rate, if the loss has not exploded before.")] = 1.0,
) -> None:
    """Try learning rates from low to high in one short run on your prepared data, and plot the loss over them."""
    from pipeline.jobs.find_lr import find_lr as run_search
    from pipeline.params import load_params

    if low >= high:
        raise UserError(f"--low {low:g} --high {high:g}: low must be below high")
    fastest, lowest = run_search(load_params(), out, steps, low, high)
    typer.echo(f"the loss falls fastest at {fastest:.2g} and is lowest at {lowest:.2g}: train.lr lies between them")
    typer.echo(f"{out / 'learning_rate.png'} shows it")


@command()
def ablate(
    out: Annotated[Path, typer.Option(help="Folder for results; arms that are in it are not trained again.")] = Path(
        "ablation"
    ),
    tables: Annotated[str, typer.Option(help="Tables to make, separated by commas.")] = "a,b,d,clahe,matching",
    epochs: Annotated[int | None, typer.Option(min=1, help="Epochs of each arm, instead of train.epochs.")] = None,
) -> None:
    """Repeat the focal loss paper's comparisons, and compare CLAHE on and off and ways to match, on your data."""
    from pipeline.jobs.ablate import TABLES
    from pipeline.jobs.ablate import ablate as run_ablation
    from pipeline.params import load_params

    asked = tables.split(",")
    for name in asked:
        if name not in TABLES:
            raise UserError(f"--tables {tables}: {name!r} is none of {', '.join(TABLES)}")
    table = run_ablation(load_params(), out, asked, epochs)
    typer.echo(table.read_text())
    typer.echo(f"{table}, with ablation.png and loss_curves.png beside it")


@command()
def sweep(
    out: Annotated[
        Path, typer.Option(help="Folder of the trials; a sweep that is started again continues there.")
    ] = Path("sweep"),
    trials: Annotated[int | None, typer.Option(min=1, help="Number of trials in all, instead of sweep.trials.")] = None,
) -> None:
    """Search for params that give a better model on your prepared data; several processes may search at once."""
    from pipeline.jobs.sweep import sweep as run_sweep
    from pipeline.params import load_params

    best = run_sweep(load_params(), out, trials)
    typer.echo(f"{best}: copy it to params.yaml to train with it; trials.csv and plots lie beside it")


@command()
def crossval() -> None:
    """Train a network for each of split.folds and combine them into one model; several processes may share the work."""
    from pipeline.jobs.crossval import crossval as run_crossval
    from pipeline.jobs.crossval import gain
    from pipeline.params import load_params

    params = load_params()
    trained = run_crossval(params)
    typer.echo(gain(params, trained))
    typer.echo(f"{trained.model}: the model; {trained.reports / 'report.html'}: its report")


@command("convert-weights")
def convert_weights(
    state_dict: Annotated[Path, typer.Argument(metavar="STATE_DICT", help="torch.save(model.state_dict(), FILE).")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to make.")],
    architecture: Annotated[str, typer.Option(help="The timm model that it fits, such as densenet121 or resnet50.")],
    pixel_range: Annotated[
        float | None,
        typer.Option(min=1e-6, help="The model takes pixels from -R to R; 1024 for torchxrayvision's."),
    ] = None,
    trained_on: Annotated[
        list[str] | None, typer.Option(help="A data set that the weights have seen; may be given several times.")
    ] = None,
) -> None:
    """Turn a trained classifier's state dict into weights to start from: model.backbone local-dir:OUT."""
    from pipeline.jobs.convert_weights import convert_weights as convert

    folder = convert(state_dict, out, architecture, pixel_range, trained_on or [])
    typer.echo(f"{folder}: set model.backbone to local-dir:{folder} and model.weights to pretrained")


@command()
def doctor(
    relocate: Annotated[
        bool, typer.Option("--relocate", help="Make mlruns beside MLflow's database the folder of all its files.")
    ] = False,
) -> None:
    """Check versions, disk, servers, rights and the GPU; --relocate corrects a moved store's file places."""
    from pipeline.jobs.doctor import ALL, BEFORE_TRAINING
    from pipeline.jobs.doctor import doctor as run_doctor
    from pipeline.tracking import relocate as set_places
    from pipeline.tracking import shown_uri, tracking_uri

    if relocate:
        typer.echo(f"{set_places(tracking_uri())} file locations were set in {shown_uri()}")
    run_doctor(BEFORE_TRAINING if relocate else ALL, typer.echo)


@command()
def keep() -> None:
    """Push the results of the last run to DVC's remote, so that `pneumoflow restore` finds them elsewhere."""
    from pipeline.jobs.keep import keep as keep_results

    keep_results(typer.echo)


@command()
def restore(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="An MLflow run's id, or models:/NAME@ALIAS.")],
    force: Annotated[bool, typer.Option("--force", help="Replace a dvc.lock that names other files.")] = False,
) -> None:
    """Bring all files of the run that made a model into this clone: models, reports, prepared data."""
    from pipeline.jobs.keep import restore as restore_results

    restore_results(model, typer.echo, force=force)


@command()
def sync() -> None:
    """Deliver metrics and pictures that runs of this folder could not deliver because MLflow did not answer."""
    from pipeline.tracking import shown_uri, sync_left_behind

    delivered, waiting = sync_left_behind()
    typer.echo(f"{delivered} entries delivered to {shown_uri()}")
    if waiting:
        raise UserError(f"{shown_uri()}: data of {waiting} runs could not be delivered and wait on this disk")
