"""Serve the training flow on the schedule of ``params.yaml``; never two runs at once."""

import typer
from prefect.schedules import Cron

from flows.serving import serve_flow
from flows.training import training
from pipeline.errors import UserError, run_main
from pipeline.params import load_params

DEPLOYMENT = "scheduled"


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def serve() -> None:
    """Register the training flow with its schedule (params: schedule) and run it whenever it is due, until stopped."""
    schedule = load_params().schedule
    try:
        cron = Cron(schedule.cron, timezone=schedule.timezone)
    except ValueError as error:
        raise UserError(f"schedule.cron = {schedule.cron!r}: {error}") from None
    serve_flow(training, DEPLOYMENT, cron)


if __name__ == "__main__":
    run_main(app)
