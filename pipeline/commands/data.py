"""Commands that make, check and compare data sets."""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from pipeline.commands.arguments import DatasetFolder, StudySeconds, Workers, label_rules, model_folder
from pipeline.errors import UserError

app = typer.Typer()
command = partial(app.command, rich_help_panel="Data")


@command()
def sample(
    out: Annotated[Path, typer.Argument(help="A new or empty folder.")],
    studies: Annotated[int, typer.Option(min=1, help="Number of studies.")] = 320,
    size: Annotated[int, typer.Option(min=128, max=2048, help="Side of the images in pixels.")] = 512,
    seed: Annotated[int, typer.Option(min=0, help="Which data set.")] = 17,
    opacity_fraction: Annotated[float, typer.Option(min=0, max=1, help="Share of studies with boxes.")] = 0.225,
    labels: Annotated[
        Path | None, typer.Option(help="Render pixels for this label table, instead of made-up labels.")
    ] = None,
    workers: Workers = 0,
) -> None:
    """Render a synthetic data set in the challenge's format."""
    from pipeline.sources.sample import make_sample

    made = make_sample(
        out, studies=studies, size=size, seed=seed, opacity_fraction=opacity_fraction, labels=labels, workers=workers
    )
    typer.echo(f"{made} studies in {out}")


@command()
def download(
    out: Annotated[Path, typer.Argument(help="A new or empty folder, such as data/rsna.")],
    mapping: Annotated[
        Path | None, typer.Option(help="RSNA's mapping to NIH names (JSON); tells which images are of one patient.")
    ] = None,
) -> None:
    """Fetch the RSNA Pneumonia Detection Challenge from Kaggle."""
    from pipeline.sources.kaggle import download_challenge

    download_challenge(out, mapping)
    typer.echo(f"{out} is complete; `dvc add {out}` makes it the data to train on")


@command("import")
def import_(
    source: Annotated[Path, typer.Argument(help="A label file, or the folder of the label files.")],
    out: Annotated[Path, typer.Argument(help="A new or empty folder, such as data/rsna.")],
    kind: Annotated[
        str, typer.Option("--format", help="auto, coco, yolo, voc, vindr, nih, labelstudio, cvat or rsna.")
    ] = "auto",
    images: Annotated[
        Path | None, typer.Option(help="The folder of the images; without it, that of the labels.")
    ] = None,
    without_boxes: Annotated[bool, typer.Option(help="Keep labelled images without a box, as negatives.")] = True,
    unlabelled: Annotated[
        bool, typer.Option("--unlabelled", help="Keep images that the labels do not mention, as negatives.")
    ] = False,
    update: Annotated[
        bool, typer.Option("--update", help="Replace the labels of SOURCE's images in the data set OUT; keep the rest.")
    ] = False,
) -> None:
    """Import a labelled data set of another format into the project's layout."""
    from pipeline.jobs.import_data import import_data
    from pipeline.jobs.update_labels import update_labels

    if update:
        if images or unlabelled or not without_boxes:
            raise typer.BadParameter("takes the images of OUT, and all labelled ones", param_hint="--update")
        typer.echo(update_labels(source, out, kind))
        typer.echo(f"{out} is changed; `dvc add {out}` keeps it as a new version")
        return
    typer.echo(import_data(source, out, kind, images, without_boxes=without_boxes, unlabelled=unlabelled))
    typer.echo(f"{out} is complete; name its classes in params.yaml (classes), and `pneumoflow check {out}` checks it")


@command()
def check(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A data set in the challenge's layout.")],
    report: Annotated[Path, typer.Option(help="The page to write.")] = Path("reports/data.html"),
    study_seconds: Annotated[
        float | None,
        typer.Option(min=0.1, help="A study that takes longer is unusable; without it, data.study_seconds, or 60."),
    ] = None,
    shown: Annotated[int, typer.Option(min=0, help="Studies to name for each issue.")] = 20,
    workers: Workers = 0,
) -> None:
    """Compare tables, files and pixels of a data set, and write a page; exit code 1 if any study is unusable.

    Studies are prepared as params.yaml says, if there is one.
    """
    from pipeline.assembly.preprocessing import preprocessing_of
    from pipeline.data.checks import SMALLEST, check_dataset
    from pipeline.data.parallel import Workers as Processes
    from pipeline.files import write_text
    from pipeline.params import load_params
    from pipeline.reports.data_page import issues_text, render_data_page

    where, settings, seconds, keep_lateral = Processes(workers), SMALLEST, 60.0, False
    if Path("params.yaml").exists():
        params = load_params()
        settings, seconds = preprocessing_of(params), params.data.study_seconds
        keep_lateral = params.data.lateral == "keep"
    rules = label_rules()
    examination = check_dataset(folder, where, study_seconds or seconds, settings, rules, keep_lateral=keep_lateral)
    write_text(report, render_data_page(examination, study_seconds or seconds))
    typer.echo(examination.summary())
    for line in issues_text(examination, shown):
        typer.echo(line)
    typer.echo(f"{report} shows more")
    if examination.problems:
        raise UserError(f"{folder}: {len(examination.problems)} unusable studies; the issues marked error say why")


@command()
def export_labels(
    folder: DatasetFolder,
    out: Annotated[Path, typer.Argument(help="The file to write.")],
) -> None:
    """Write the boxes of a data set as COCO's JSON, which `pneumoflow import` and other tools read."""
    from pipeline.jobs.export_labels import export_labels as run_export

    typer.echo(f"{out}: {run_export(folder, out)}")


@command("labels-diff")
def labels_diff(
    before: Annotated[str, typer.Argument(metavar="A", help="A data set, a label table, or a git revision.")],
    after: Annotated[str, typer.Argument(metavar="B", help="The newer version, in one of these ways.")],
    data: Annotated[Path, typer.Option(help="The data set that revisions are of, and whose images are drawn.")] = (
        Path("data/rsna")
    ),
    report: Annotated[Path, typer.Option(help="The page to write.")] = Path("reports/labels_diff.html"),
    study_seconds: StudySeconds = 60,
) -> None:
    """Show what changed between two versions of the labels: boxes added, removed, moved, of another class."""
    from pipeline.jobs.labels_diff import labels_diff as run_diff

    typer.echo(run_diff(before, after, data, report, study_seconds))
    typer.echo(f"{report} shows them")


@command()
def groups(
    mapping: Annotated[Path, typer.Argument(help="RSNA's mapping to NIH names (JSON).")],
    out: Annotated[Path, typer.Option(help="The table to write.")] = Path("data/rsna/patient_groups.csv"),
) -> None:
    """Write a table that assigns images to patients, from the official mapping to NIH ChestX-ray14."""
    from pipeline.sources.kaggle import write_groups

    images, patients = write_groups(mapping, out)
    typer.echo(f"{out}: {images} images of {patients} patients")


@command()
def patients(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A data set of DICOM files in the challenge's layout.")],
    study_seconds: StudySeconds = 60,
    workers: Workers = 0,
) -> None:
    """Write patient_groups.csv from the PatientID of each DICOM header, hashed with a secret of this project."""
    from pipeline.data.parallel import Workers as Processes
    from pipeline.jobs.patients import write_patients

    typer.echo(f"{folder}: {write_patients(folder, Processes(workers), study_seconds)}")


@command()
def queue(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A data set, or a folder of images without labels.")],
    model: Annotated[
        list[str] | None, typer.Option(help="A model as in `predict`; more of them are asked whether they agree.")
    ] = None,
    out: Annotated[Path, typer.Option(help="A new or empty folder.")] = Path("queue"),
    count: Annotated[int, typer.Option(min=1, help="Number of studies.")] = 50,
    study_seconds: StudySeconds = 60,
) -> None:
    """Choose the studies that a person should look at next, with boxes to correct, for Label Studio and CVAT."""
    from pipeline.assembly.review import Model
    from pipeline.data.reader import Reader, reading_processes
    from pipeline.delivery.predictor import Predictor
    from pipeline.jobs.queue import queue as make_queue

    with Reader(reading_processes(), study_seconds) as reader:
        folders = {name: model_folder(name) for name in model or ["models"]}
        models = [Model(name, place, Predictor(place)) for name, place in folders.items()]
        typer.echo(make_queue(folder, models, out, count, reader, label_rules()))
    typer.echo(f"{out}: label_studio.json and .xml, coco.json, {out / 'queue.csv'}")
