"""Serving a flow: its deployment is registered, and the flow runs whenever it is due, until stopped."""

import logging
import signal
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import typer
from prefect import Flow
from prefect.schedules import Schedule

from flows.deployments import folder_tag, refuse_takeover
from flows.messages import calm_logs
from flows.reach import require_server, server_answers, wait_for_server
from flows.running import stop_on_signals
from flows.servers import scheduling_server
from pipeline.folder_lock import only_one
from pipeline.loopback import bypass_proxy

logger = logging.getLogger(__name__)

# One run at work, and one that finds the folder's lock taken and ends as Skipped.
_PROCESSES = 2


def serve_flow(
    flow: Flow[..., Any],
    name: str,
    when: Schedule | timedelta,
    parameters: dict[str, Any] | None = None,
) -> None:
    """Serve a flow on a schedule of cron times or at an interval, and say so in one line.

    Prefect's own concurrency limits are not used, because after a power cut its database still counts the runs
    that were killed. The folder's lock ensures that only one run works at a time.

    Raises:
        UserError: no server answers, or the deployment belongs to another folder or is served already.
    """
    stop_on_signals()
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        # Prefect's runner handles SIGTERM by ending its runs in order.
        signal.signal(signal.SIGHUP, _end_in_order)
    bypass_proxy()
    calm_logs()
    with only_one(Path(f".pneumoflow/serve-{name}.lock"), f"process that serves {name!r}"), scheduling_server():
        require_server()
        refuse_takeover([name])
        typer.echo(f"the flow {flow.name} runs {_in_words(when)} until this command is stopped", err=True)
        times = {"schedule": when} if isinstance(when, Schedule) else {"interval": when}
        while not _served(flow, name, parameters=parameters, **times):
            wait_for_server()


def _in_words(when: Schedule | timedelta) -> str:
    if isinstance(when, Schedule):
        return f"by the schedule {when.cron!r} ({when.timezone})"
    return f"every {when.total_seconds():g} s"


def _end_in_order(*_: object) -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # once is enough
    signal.raise_signal(signal.SIGTERM)


def _served(flow: Flow[..., Any], name: str, **options: Any) -> bool:
    """Serve the flow; return True once it is stopped, False if Prefect gives up on a server that is away."""
    try:
        flow.serve(name=name, tags=[folder_tag()], limit=_PROCESSES, print_starting_message=False, **options)
    except (httpx.HTTPError, RuntimeError) as error:
        if server_answers():
            raise
        logger.warning("%s; serving continues when the server is back", error)
        return False
    return True
