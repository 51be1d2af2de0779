"""Commands that use a trained model."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.commands.arguments import REGISTERED, BatchSize, ModelName, StudySeconds, model_folder
from pipeline.errors import UserError
from pipeline.escaping import printable
from pipeline.progress import at_work

if TYPE_CHECKING:
    from pipeline.delivery.answers import AnswerWriter
    from pipeline.delivery.batch import Writer
    from pipeline.delivery.serving_limits import ServingLimits
    from pipeline.delivery.structured_report import ReportWriter

app = typer.Typer()
command = partial(app.command, rich_help_panel="Use")


@command()
def predict(
    model: ModelName,
    inputs: Annotated[
        list[Path], typer.Argument(help="DICOM, PNG or JPEG files, folders of them, or .txt files that list paths.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for predictions.csv and the other outputs.")],
    pictures: Annotated[bool, typer.Option(help="Draw each study's detections: pictures/.")] = True,
    coco: Annotated[bool, typer.Option("--coco", help="Write COCO's JSON too: coco.json.")] = False,
    sr: Annotated[bool, typer.Option("--sr", help="Write DICOM Structured Reports (TID 1500) too: sr/.")] = False,
    batch_size: BatchSize = 4,
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
        predictor = Predictor(model_folder(model))
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


@command()
def inbox(
    model: ModelName,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where studies arrive.")],
    out: Annotated[Path, typer.Option(help="Folder of scored.csv; each study adds a row.")] = Path("scored"),
    settle_seconds: Annotated[float, typer.Option(min=0, help="Files changed since may still be arriving.")] = 5,
    batch_size: BatchSize = 4,
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
        predictor = Predictor(model_folder(model))
        done = score_inbox(predictor, reader, model, folder, out, batch_size, settle_seconds, writer)
    typer.echo(
        f"{done.scored} studies scored, {done.passed_over} passed over, {done.unsettled} still arriving: {out / SCORED}"
    )


@command()
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


@command()
def serve(
    model: ModelName,
    host: Annotated[str, typer.Option(help="Another address than this makes the model reachable from outside.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(min=1, max=65535, help="The port of the server.")] = 5001,
) -> None:
    """Answer requests over HTTP in MLflow's scoring protocol, within the limits of the model's configuration."""
    from pipeline.data.reader import Reader
    from pipeline.delivery.predictor import Predictor
    from pipeline.delivery.served import ServedModel
    from pipeline.delivery.server import serve as run_server

    limits = _serving_limits(model)
    with Reader(limits.max_requests, limits.study_seconds).start() as reader:
        served = ServedModel(Predictor(model_folder(model)), reader, limits)
        typer.echo(f"{model} answers at http://{host}:{port}/invocations", err=True)
        run_server(served, host, port)


@command()
def export(
    model: ModelName,
    out: Annotated[Path, typer.Option(help="Folder for the exported model and its model.json.")],
    kind: Annotated[
        str,
        typer.Option(
            "--format", help="onnx, torch (torch.export) or triton (ONNX in the layout of NVIDIA's Triton server)."
        ),
    ] = "onnx",
    int8: Annotated[
        bool, typer.Option("--int8", help="8-bit convolutions, faster on CPUs; calibrated on the project's val split.")
    ] = False,
) -> None:
    """Export the model for other runtimes, with suppression in the graph, and compare the result with the model."""
    try:
        with at_work("exporting, and comparing the result with the model"):
            if int8:
                from pipeline.jobs.export_int8 import export_int8
                from pipeline.params import load_params

                written = export_int8(load_params(), model_folder(model), out, kind)
            else:
                from pipeline.delivery.export import export_model

                written = export_model(model_folder(model), out, kind)
    except ImportError as error:
        raise UserError(f"--format {kind}: {error}; pip install -c constraints.txt -e '.[export]'") from None
    same = "finds about as well as the model" if int8 else "gives the model's boxes and scores"
    typer.echo(f"{written}: {same}; check.json has the {'mAP on val' if int8 else 'largest differences'}")


@command()
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

    monitored = run_check(load_params(), scored, out)
    typer.echo(f"{monitored}; {out / DRIFT_PAGE} shows more" if monitored.drifts else str(monitored))


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
    from pipeline.delivery.serving_limits import read_limits

    if not model.startswith(REGISTERED):
        return read_limits({}, model)
    from pipeline.tracking import serving_config

    return read_limits(serving_config(model), model)
