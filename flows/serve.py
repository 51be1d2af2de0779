"""Serve the training flow on the schedule of ``params.yaml``; never two runs at once."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyLimitStrategy
from prefect.schedules import Cron
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows.servers import HOST, PREFECT_PORT, answers, prefect_server
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
    with _server():
        training.serve(
            name=DEPLOYMENT,
            schedule=cron,
            limit=1,
            # A run that falls due while one is still at work is dropped: the next one does its job.
            global_limit=ConcurrencyLimitConfig(limit=1, collision_strategy=ConcurrencyLimitStrategy.CANCEL_NEW),
        )


@contextmanager
def _server() -> Iterator[None]:
    """The server that Prefect is set to, else one on this machine: running already, or ours while we serve."""
    if PREFECT_API_URL.value():
        yield
        return
    local = f"http://{HOST}:{PREFECT_PORT}"
    with ExitStack() as stack:
        # Prefect's temporary server would do for one run, but it has no scheduler.
        url = local if answers(f"{local}/api/health") else stack.enter_context(prefect_server(PREFECT_PORT))
        with temporary_settings({PREFECT_API_URL: f"{url}/api"}):
            yield


if __name__ == "__main__":
    run_main(main)
