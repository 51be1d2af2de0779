"""The ``pneumoflow`` command: each subcommand reads its arguments, makes one call and prints a short result."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.errors import UserError, run_main
from pipeline.escaping import printable

if TYPE_CHECKING:
    from pipeline.data.box_classes import LabelRules
    from pipeline.delivery.answers import AnswerWriter
    from pipeline.delivery.batch import Writer
    from pipeline.delivery.served import ServingLimits
    from pipeline.delivery.structured_report import ReportWriter

app = typer.Typer(
    help="Chest X-ray detection: sample and real data, checks, prediction, scoring.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

# Prefixes of models that MLflow fetches; any other model is a folder.
_REGISTERED = ("models:/", "runs:/", "mlflow-artifacts:/")

StudySeconds = Annotated[float, typer.Option(min=0.1, help="A study that takes longer to read is unusable.")]
Workers = Annotated[int, typer.Option(min=0, help="Processes; 0 means one per core.")]
ModelsFolder = Annotated[Path, typer.Option(help="Folder of the model; crossval/models is that of all folds.")]
ReportsFolder = Annotated[Path, typer.Option(help="Folder of its results, such as crossval/reports.")]


@app.command()
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


@app.command()
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


@app.command("import")
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


@app.command()
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
    rules = _label_rules()
    examination = check_dataset(folder, where, study_seconds or seconds, settings, rules, keep_lateral=keep_lateral)
    write_text(report, render_data_page(examination, study_seconds or seconds))
    typer.echo(examination.summary())
    for line in issues_text(examination, shown):
        typer.echo(line)
    typer.echo(f"{report} shows more")
    if examination.problems:
        raise UserError(f"{folder}: {len(examination.problems)} unusable studies; the issues marked error say why")


@app.command()
def export_labels(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A data set in the project's layout.")],
    out: Annotated[Path, typer.Argument(help="The file to write.")],
) -> None:
    """Write the boxes of a data set as COCO's JSON, which `pneumoflow import` and other tools read."""
    from pipeline.jobs.export_labels import export_labels as run_export

    typer.echo(f"{out}: {run_export(folder, out)}")


@app.command("labels-diff")
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


@app.command()
def groups(
    mapping: Annotated[Path, typer.Argument(help="RSNA's mapping to NIH names (JSON).")],
    out: Annotated[Path, typer.Option(help="The table to write.")] = Path("data/rsna/patient_groups.csv"),
) -> None:
    """Write a table that assigns images to patients, from the official mapping to NIH ChestX-ray14."""
    from pipeline.sources.kaggle import write_groups

    images, patients = write_groups(mapping, out)
    typer.echo(f"{out}: {images} images of {patients} patients")


@app.command()
def patients(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A data set of DICOM files in the challenge's layout.")],
    study_seconds: StudySeconds = 60,
    workers: Workers = 0,
) -> None:
    """Write patient_groups.csv from the PatientID of each DICOM header, hashed with a secret of this project."""
    from pipeline.data.parallel import Workers as Processes
    from pipeline.jobs.patients import write_patients

    typer.echo(f"{folder}: {write_patients(folder, Processes(workers), study_seconds)}")


@app.command()
def predict(
    model: Annotated[str, typer.Argument(help="models/, a run's model URI, or models:/name@alias.")],
    inputs: Annotated[
        list[Path], typer.Argument(help="DICOM, PNG or JPEG files, folders of them, or .txt files that list paths.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for predictions.csv and the other outputs.")],
    pictures: Annotated[bool, typer.Option(help="Draw each study's detections: pictures/.")] = True,
    coco: Annotated[bool, typer.Option("--coco", help="Write COCO's JSON too: coco.json.")] = False,
    sr: Annotated[bool, typer.Option("--sr", help="Write DICOM Structured Reports (TID 1500) too: sr/.")] = False,
    batch_size: Annotated[int, typer.Option(min=1, max=256)] = 4,
    study_seconds: StudySeconds = 60,
) -> None:
    """Detect opacities in DICOM, PNG or JPEG files; unreadable files are reported and passed over."""
    from contextlib import ExitStack

    from pipeline.data.reader import Reader, reading_processes

    with ExitStack() as stack:
        # The reader's processes start while PyTorch is imported and the model is loaded.
        reader = stack.enter_context(Reader(reading_processes(), study_seconds)).start()
        from pipeline.data.data_issues import RULES
        from pipeline.delivery.batch import list_files, predict_files
        from pipeline.delivery.predictor import Predictor
        from pipeline.delivery.writers import PictureWriter, coco_writer, table_writer

        files = list_files(inputs)  # missing inputs are reported before the model is loaded
        predictor = Predictor(_model_folder(model))
        reports = _report_writer(out / "sr") if sr else None
        writers: list[Writer] = [reports] if reports else []
        writers += [PictureWriter(out / "pictures")] if pictures else []
        writers += [stack.enter_context(coco_writer(out / "coco.json", predictor.config.classes))] if coco else []
        writers += [stack.enter_context(table_writer(out / "predictions.csv"))]
        done = predict_files(predictor, reader, files, batch_size, writers)
    for path, reason in done.problems.items():
        typer.echo(f"passed over {printable(path)}: {reason}", err=True)
    for path in done.nearly_empty:
        typer.echo(f"warning: {printable(path)}: {RULES['nearly_empty'].title}", err=True)
    typer.echo(f"{done.predicted} studies, {done.detections} detections: {out / 'predictions.csv'}")
    if not done.predicted:
        raise UserError(f"{printable(inputs[0])}: no readable image among the inputs")
    if reports:
        _say_reports(reports, out / "sr")


@app.command()
def inbox(
    model: Annotated[str, typer.Argument(help="models/, a run's model URI, or models:/name@alias.")],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where studies arrive.")],
    out: Annotated[Path, typer.Option(help="Folder of scored.csv; each study adds a row.")] = Path("scored"),
    settle_seconds: Annotated[float, typer.Option(min=0, help="Files changed since may still be arriving.")] = 5,
    batch_size: Annotated[int, typer.Option(min=1, max=256)] = 4,
    study_seconds: StudySeconds = 60,
    answers: Annotated[
        bool, typer.Option("--answers", help="Write DICOM objects for `pneumoflow send` too: answers/ in the folder.")
    ] = False,
) -> None:
    """Score the new studies in a folder, each study once; `python -m flows.inference` does this on a schedule."""
    from pipeline.data.reader import Reader, reading_processes
    from pipeline.delivery.inbox import score_inbox
    from pipeline.delivery.predictor import Predictor
    from pipeline.delivery.scored import SCORED

    writer = _answer_writer(out) if answers else None
    with Reader(reading_processes(), study_seconds) as reader:
        predictor = Predictor(_model_folder(model))
        done = score_inbox(predictor, reader, model, folder, out, batch_size, settle_seconds, writer)
    typer.echo(
        f"{done.scored} studies scored, {done.passed_over} passed over, {done.unsettled} still arriving: {out / SCORED}"
    )


@app.command()
def send(
    archive: Annotated[str, typer.Argument(help="AETITLE@HOST:PORT (C-STORE), or a DICOMweb address (STOW-RS).")],
    scored: Annotated[Path, typer.Argument(help="The folder of scored.csv.")] = Path("scored"),
    title: Annotated[str, typer.Option("--ae-title", help="Our own AE title.")] = "PNEUMOFLOW",
) -> None:
    """Send the answers that `pneumoflow inbox --answers` wrote to the archive; what it does not take waits."""
    try:
        from pipeline.archive.sender import send_waiting
    except ImportError:
        raise UserError("needs pynetdicom; pip install -c constraints.txt -e '.[archive]'") from None
    typer.echo(send_waiting(scored, archive, title))


@app.command()
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
        folders = {name: _model_folder(name) for name in model or ["models"]}
        models = [Model(name, place, Predictor(place)) for name, place in folders.items()]
        typer.echo(make_queue(folder, models, out, count, reader, _label_rules()))
    typer.echo(f"{out}: label_studio.json and .xml, coco.json, {out / 'queue.csv'}")


@app.command()
def serve(
    model: Annotated[str, typer.Argument(help="models/, a run's model URI, or models:/name@alias.")],
    host: Annotated[str, typer.Option(help="Another address than this makes the model reachable from outside.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(min=1, max=65535)] = 5001,
) -> None:
    """Answer requests over HTTP in MLflow's scoring protocol, within the limits of the model's configuration."""
    from pipeline.data.reader import Reader
    from pipeline.delivery.predictor import Predictor
    from pipeline.delivery.served import ServedModel
    from pipeline.delivery.server import serve as run_server

    limits = _serving_limits(model)
    with Reader(limits.max_requests, limits.study_seconds).start() as reader:
        served = ServedModel(Predictor(_model_folder(model)), reader, limits)
        typer.echo(f"{model} answers at http://{host}:{port}/invocations", err=True)
        run_server(served, host, port)


@app.command()
def export(
    model: Annotated[str, typer.Argument(help="models/, a run's model URI, or models:/name@alias.")],
    out: Annotated[Path, typer.Option(help="Folder for the exported model and its model.json.")],
    kind: Annotated[str, typer.Option("--format", help="onnx, or torch (torch.export).")] = "onnx",
) -> None:
    """Export the model for other runtimes, with suppression in the graph, and compare the result with the model."""
    try:
        from pipeline.delivery.export import export_model

        written = export_model(_model_folder(model), out, kind)
    except ImportError as error:
        raise UserError(f"--format {kind}: {error}; pip install -c constraints.txt -e '.[export]'") from None
    typer.echo(f"{written}: gives the model's boxes and scores; check.json has the largest differences")


@app.command()
def monitor(
    scored: Annotated[Path, typer.Argument(help="The folder of scored.csv that `pneumoflow inbox` fills.")] = Path(
        "scored"
    ),
    out: Annotated[Path, typer.Option(help="Folder for drift.html and drift.json.")] = Path("reports"),
) -> None:
    """Compare new studies with those that the champion was validated on (params: monitor)."""
    from pipeline.jobs.monitor import DRIFT_PAGE
    from pipeline.jobs.monitor import monitor as run_check
    from pipeline.params import load_params

    typer.echo(f"{run_check(load_params(), scored, out)}; {out / DRIFT_PAGE} shows more")


@app.command()
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
    seed: Annotated[int, typer.Option(min=0)] = 17,
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
    rules = _label_rules()
    if against:
        metrics, note = compare_submissions(predictions, against, labels, draws, seed, threshold, part, rules)
    else:
        metrics, note = score_submission(predictions, labels, draws, seed, threshold, part, rules)
    typer.echo(note, err=True)
    typer.echo(json.dumps(metrics, indent=2))


@app.command()
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


@app.command()
def register(models: ModelsFolder = Path("models"), reports: ReportsFolder = Path("reports")) -> None:
    """Register models/ and its results in this MLflow store, if they came from another store (dvc pull)."""
    from pipeline.assembly.registration import register as run_registration
    from pipeline.params import load_params
    from pipeline.tracking import shown_uri

    version = run_registration(load_params(), models, reports)
    typer.echo(f"version {version.version} in {shown_uri()}, of run {version.run_id}")


@app.command()
def keep() -> None:
    """Push the results of the last run to DVC's remote, so that `pneumoflow restore` finds them elsewhere."""
    from pipeline.jobs.keep import keep as keep_results

    keep_results(typer.echo)


@app.command()
def restore(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="An MLflow run's id, or models:/NAME@ALIAS.")],
    force: Annotated[bool, typer.Option("--force", help="Replace a dvc.lock that names other files.")] = False,
) -> None:
    """Bring all files of the run that made a model into this clone: models, reports, prepared data."""
    from pipeline.jobs.keep import restore as restore_results

    restore_results(model, typer.echo, force=force)


@app.command()
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


@app.command()
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


@app.command("find-lr")
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


@app.command()
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


@app.command("convert-weights")
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


@app.command()
def crossval() -> None:
    """Train a network for each of split.folds and combine them into one model; several processes may share the work."""
    from pipeline.jobs.crossval import crossval as run_crossval
    from pipeline.jobs.crossval import gain
    from pipeline.params import load_params

    params = load_params()
    trained = run_crossval(params)
    typer.echo(gain(params, trained))
    typer.echo(f"{trained.model}: the model; {trained.reports / 'report.html'}: its report")


@app.command()
def sync() -> None:
    """Deliver metrics and pictures that runs of this folder could not deliver because MLflow did not answer."""
    from pipeline.tracking import shown_uri, sync_left_behind

    delivered, waiting = sync_left_behind()
    typer.echo(f"{delivered} entries delivered to {shown_uri()}")
    if waiting:
        raise UserError(f"{shown_uri()}: data of {waiting} runs could not be delivered and wait on this disk")


def _say_reports(reports: "ReportWriter", folder: Path) -> None:
    for path, reason in reports.problems.items():
        typer.echo(f"no report of {printable(path)}: {reason}", err=True)
    typer.echo(f"{reports.written} reports: {folder}")
    if reports.problems:
        count = len(reports.problems)
        raise UserError(f"{folder}: {count} of {count + reports.written} reports could not be made")


def _answer_writer(scored: Path) -> "AnswerWriter":
    try:
        from pipeline.delivery.answers import ANSWERS, AnswerWriter
    except ImportError:
        raise UserError("--answers: needs highdicom; pip install -c constraints.txt -e '.[sr]'") from None
    scored.mkdir(parents=True, exist_ok=True)
    return AnswerWriter(scored / ANSWERS)


def _report_writer(folder: Path) -> "ReportWriter":
    try:
        from pipeline.delivery.structured_report import ReportWriter
    except ImportError:
        raise UserError("--sr: needs highdicom; pip install -c constraints.txt -e '.[sr]'") from None
    return ReportWriter(folder)


def _serving_limits(model: str) -> "ServingLimits":
    from pipeline.delivery.served import read_limits

    if not model.startswith(_REGISTERED):
        return read_limits({}, model)
    from pipeline.tracking import serving_config

    return read_limits(serving_config(model), model)


def _label_rules() -> "LabelRules | None":
    """Return the classes of params.yaml, if there is one; otherwise each name in a label table is a class."""
    from pipeline.assembly.labels import label_rules_of
    from pipeline.params import load_params

    return label_rules_of(load_params()) if Path("params.yaml").exists() else None


def _model_folder(model: str) -> Path:
    if model.startswith(_REGISTERED):
        from pipeline.tracking import download_model

        return download_model(model)
    return Path(model)


def main() -> None:
    """Run the console script."""
    run_main(app)


if __name__ == "__main__":
    main()
