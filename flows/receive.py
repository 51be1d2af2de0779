"""Images from an archive or a device, received (C-STORE) or fetched (DICOMweb), fill the inbox of `flows.inference`."""

import logging
import time
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from threading import Event
from typing import Annotated

import typer

from flows.running import stop_on_signals
from pipeline.errors import UserError, run_main
from pipeline.redaction import redact

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def receive(
    folder: Annotated[Path, typer.Argument(help="Where images go.")] = Path("inbox"),
    sender: Annotated[
        list[str] | None,
        typer.Option("--from", help="AE title of a sender that is accepted; may be given several times."),
    ] = None,
    title: Annotated[str, typer.Option("--ae-title", help="AE title of this receiver.")] = "PNEUMOFLOW",
    host: Annotated[str, typer.Option(help="Another address than this makes the receiver reachable from outside.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 means any that is free.")] = 11112,
    max_mib: Annotated[int, typer.Option(min=1, max=256, help="Size of an image.")] = 256,
    per_minute: Annotated[int, typer.Option(min=1, help="Images of a sender in a minute.")] = 600,
    pull_from: Annotated[
        str, typer.Option("--pull", help="Address of a DICOMweb service whose new images are fetched.")
    ] = "",
    every: Annotated[float, typer.Option(min=1, help="Seconds between two looks at that service.")] = 60,
    days: Annotated[int, typer.Option(min=1, help="It is asked for the studies of so many days.")] = 2,
) -> None:
    """Receive images, or fetch them, until stopped."""
    try:
        from pipeline.archive.puller import pull
        from pipeline.archive.receiver import Limits, Receiver, receiving
    except ImportError:
        raise UserError("needs pynetdicom; pip install -c constraints.txt -e '.[archive]'") from None
    stop_on_signals()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    receiver = Receiver(folder, Limits(max_mib * 2**20, per_minute))
    with ExitStack() as stack:
        if sender or not pull_from:
            bound = stack.enter_context(receiving(receiver, title, sender or [], host, port))
            typer.echo(f"{title} receives at {host}:{bound} from {', '.join(sender or [])}, into {folder}", err=True)
        if not pull_from:
            Event().wait()
        folder.mkdir(parents=True, exist_ok=True)
        typer.echo(f"fetching from {redact(pull_from)} every {every:g} s, into {folder}", err=True)
        while True:
            if came := pull(receiver, pull_from, days, datetime.now().astimezone().date()):
                typer.echo(f"{came} images from {redact(pull_from)}", err=True)
            time.sleep(every)


if __name__ == "__main__":
    run_main(app)
