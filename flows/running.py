"""How every flow of ours runs: alone in its folder, marked alive, and not ended by a server that is away."""

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
from flows.loopback import bypass_proxy
from flows.messages import calm_logs
from flows.reach import require_server, server_answers, wait_for_server
from flows.servers import run_server
from pipeline.errors import Killed, UserError
from pipeline.folder_lock import BusyError, only_one

logger = logging.getLogger(__name__)

Result = TypeVar("Result")
# A run that starts later than this after its time has been missed: the machine slept, or was busy.
_LATE = timedelta(seconds=90)
_DELIVERY_SECONDS = 5.0


@contextmanager
def flow_process() -> Iterator[None]:
    """Around a flow that a terminal, cron or another program has started: signals, and a server to report to.

    Raises:
        UserError: there is no server, or the flow did not run since another is at work here.
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
    """Send the last logs and events, as long as there is a server to take them."""
    for service in (APILogWorker, EventsWorker):
        service.drain_all(timeout=_DELIVERY_SECONDS)


def stop_on_signals() -> None:
    """Let SIGTERM and the hang-up of the terminal end this process as Ctrl+C does; ``nohup`` keeps its meaning."""
    signal.signal(signal.SIGTERM, _raise_killed)
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        signal.signal(signal.SIGHUP, _raise_killed)
        watch_terminal()


def _raise_killed(number: int, _: FrameType | None) -> None:
    if number == signal.SIGHUP:  # told twice, by a shell and by the system; what is ending is not to be cut off
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    raise Killed(f"signal {number}")


def run_alone(lock: Path, what: str, work: Callable[[], Result]) -> Result | State[None]:
    """The body of a flow: do ``work`` under the folder's lock.

    A run that finds another at work ends as Skipped, and so does one whose time has passed while
    another run began: after a night's sleep one run does the job of all that were missed.
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
    """Prefect would try for a minute and more to tell a server that is away; who stopped us does not want to wait."""
    logger.warning("Prefect does not answer; the next run tells it that this one has ended")
    logging.shutdown()
    os._exit(130)


def _start() -> str:
    """Mark the run and close dead ones; the reason why it need not run, or nothing."""
    close_dead_runs()
    try:
        with get_client(sync_client=True) as client:
            run = client.read_flow_run(runtime.flow_run.id)
            mark_alive(client, run.id)
            return _done_by_another(client, run)
    except httpx.HTTPError as error:
        logger.warning("Prefect does not say whether other runs are at work (%s)", type(error).__name__)
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
            continue  # due by then, but not begun: the server's filter takes these too
        if other.id != run.id and (other.start_time, other.id) < (run.start_time, run.id):
            return f"due at {run.expected_start_time:%Y-%m-%d %H:%M} UTC; run {other.name} has begun since"
    return ""
