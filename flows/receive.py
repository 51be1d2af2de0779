"""A receiver of images from an archive or a device (C-STORE), which fills the inbox of `flows.inference`."""

import logging
from pathlib import Path
from threading import Event
from typing import Annotated

import typer

from flows.running import stop_on_signals
from pipeline.errors import UserError, run_main

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
    port: Annotated[int, typer.Option(min=0, max=65535)] = 11112,
    max_mib: Annotated[int, typer.Option(min=1, max=1024, help="Size of an image.")] = 256,
    per_minute: Annotated[int, typer.Option(min=1, help="Images of a sender in a minute.")] = 600,
) -> None:
    """Receive images until stopped."""
    try:
        from pipeline.archive.receiver import Limits, Receiver, receiving
    except ImportError:
        raise UserError("needs pynetdicom; pip install -c constraints.txt -e '.[archive]'") from None
    stop_on_signals()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    receiver = Receiver(folder, Limits(max_mib * 2**20, per_minute))
    with receiving(receiver, title, sender or [], host, port) as bound:
        typer.echo(f"{title} receives at {host}:{bound} from {', '.join(sender or [])}, into {folder}", err=True)
        Event().wait()


if __name__ == "__main__":
    run_main(app)
