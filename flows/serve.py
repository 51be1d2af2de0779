"""Serve the training flow on the schedule of ``params.yaml``; never two runs at once."""

from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyLimitStrategy
from prefect.schedules import Cron

from flows.servers import scheduling_server
from flows.training import training
from pipeline.errors import UserError, run_main
from pipeline.params import load_params

DEPLOYMENT = "scheduled"


def main() -> None:
    """Register the deployment and run what falls due until stopped."""
    schedule = load_params().schedule
    try:
        cron = Cron(schedule.cron, timezone=schedule.timezone)
    except ValueError as error:
        raise UserError(f"schedule.cron = {schedule.cron!r}: {error}") from None
    with scheduling_server():
        training.serve(
            name=DEPLOYMENT,
            schedule=cron,
            limit=1,
            # A run that falls due while one is still at work is dropped: the next one does its job.
            global_limit=ConcurrencyLimitConfig(limit=1, collision_strategy=ConcurrencyLimitStrategy.CANCEL_NEW),
        )


if __name__ == "__main__":
    run_main(main)
