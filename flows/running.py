"""The frame of every flow: it runs alone in its folder, is marked alive, and survives an outage of the server."""

import logging
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import TypeVar

import httpx
from prefect import runtime
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterDeploymentId,
    FlowRunFilterStartTime,
)
from prefect.client.schemas.objects import FlowRun
from prefect.events.worker import EventsWorker
from prefect.exceptions import CancelledRun
from prefect.logging.handlers import APILogWorker
from prefect.states import Cancelled, State

from flows.dead_runs import close_dead_runs, mark_alive
from flows.hang_up import watch_terminal
from flows.messages import calm_logs
from flows.reach import require_server, server_answers, wait_for_server
from flows.servers import run_server
from pipeline.errors import Killed, UserError
from pipeline.folder_lock import BusyError, only_one
from pipeline.loopback import bypass_proxy

logger = logging.getLogger(__name__)

Result = TypeVar("Result")
# A run that starts later than this after its scheduled time was missed: the machine slept, or was busy.
_LATE = timedelta(seconds=90)
_DELIVERY_SECONDS = 5.0


@contextmanager
def flow_process() -> Iterator[None]:
    """Handle signals and provide a server for a flow that a terminal, cron or another program has started.

    Raises:
        UserError: there is no server, or the flow did not run because another run is at work here.
    """
    stop_on_signals()
    bypass_proxy()
    calm_logs()
    with run_server():
        require_server()
        try:
            yield
        except CancelledRun as error:
            raise UserError(str(error)) from None
        finally:
            _deliver()


def _deliver() -> None:
    """Send the last logs and events while there still is a server that takes them."""
    for service in (APILogWorker, EventsWorker):
        service.drain_all(timeout=_DELIVERY_SECONDS)


def stop_on_signals() -> None:
    """Let SIGTERM and the closing of the terminal end this process as Ctrl+C does; ``nohup`` keeps its effect."""
    signal.signal(signal.SIGTERM, _raise_killed)
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        signal.signal(signal.SIGHUP, _raise_killed)
        watch_terminal()


def _raise_killed(number: int, _: FrameType | None) -> None:
    if number == signal.SIGHUP:  # sent by both shell and system; the second must not interrupt the ending
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    raise Killed(f"signal {number}")


def run_alone(lock: Path, what: str, work: Callable[[], Result]) -> Result | State[None]:
    """Run the body of a flow, ``work``, under the folder's lock.

    A run ends as Skipped if another run is at work, or if another run has begun since this one was due:
    after the machine has slept for a night, one run replaces all that were missed.
    """
    calm_logs()
    bypass_proxy()
    try:
        if reason := _start():
            return _skipped(reason)
        with only_one(lock, what):
            result = work()
    except BusyError as error:
        return _skipped(str(error))
    except Exception:
        wait_for_server()
        raise
    except BaseException:
        if not server_answers():
            _end_untold()
        raise
    wait_for_server()
    return result


def _skipped(reason: str) -> State[None]:
    logger.warning("skipped: %s", reason)
    return Cancelled(name="Skipped", message=reason)


def _end_untold() -> None:
    """End the process at once, because the user who stopped it does not want to wait.

    Prefect would try for a minute and more to reach a server that is away.
    """
    logger.warning("Prefect does not answer; the next run reports that this one has ended")
    logging.shutdown()
    os._exit(130)


def _start() -> str:
    """Close dead runs and mark this one as alive; return the reason why it need not run, or an empty string."""
    close_dead_runs()
    try:
        with get_client(sync_client=True) as client:
            run = client.read_flow_run(runtime.flow_run.id)
            mark_alive(client, run.id)
            return _done_by_another(client, run)
    except httpx.HTTPError as error:
        logger.warning("Prefect cannot be asked whether other runs are at work (%s)", type(error).__name__)
    return ""


def _done_by_another(client: SyncPrefectClient, run: FlowRun) -> str:
    if not (run.auto_scheduled and run.deployment_id and run.expected_start_time and run.start_time):
        return ""
    if run.start_time - run.expected_start_time < _LATE:
        return ""
    since = FlowRunFilter(
        deployment_id=FlowRunFilterDeploymentId(any_=[run.deployment_id]),
        start_time=FlowRunFilterStartTime(after_=run.expected_start_time),
    )
    for other in client.read_flow_runs(flow_run_filter=since):
        if other.start_time is None or (other.state is not None and other.state.name == "Skipped"):
            continue  # skipped, or due but not begun: the server's filter returns these too
        if other.id != run.id and (other.start_time, other.id) < (run.start_time, run.id):
            return f"due at {run.expected_start_time:%Y-%m-%d %H:%M} UTC; run {other.name} has begun since"
    return ""
