"""The ``pneumoflow`` command."""

from importlib.metadata import version
from typing import Annotated

import typer

from pipeline.commands import data, score, train, use
from pipeline.errors import run_main

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False)
for group in (data, train, use, score):
    app.add_typer(group.app)


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"pneumoflow {version('pneumoflow')}")
        raise typer.Exit


@app.callback()
def pneumoflow(
    _: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version and exit.")
    ] = False,
) -> None:
    """Train, judge and use detectors of findings on chest radiographs.

    `dvc repro` runs the training pipeline; these commands do the rest.
    """


def main() -> None:
    """Run the console script."""
    run_main(app)


if __name__ == "__main__":
    main()
