"""Closing of flow runs whose process was killed; Prefect's server was not told, and calls them Running for ever.

Each run holds a lock on its own file in `.pneumoflow/flow_runs` as long as its process lives. A file without a
lock belongs to a run that is over, however it ended.
"""

import logging
import os
import socket
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterDeploymentId,
    FlowRunFilterId,
    FlowRunFilterState,
    FlowRunFilterStateType,
    TaskRunFilter,
    TaskRunFilterState,
    TaskRunFilterStateType,
)
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.exceptions import ObjectNotFound
from prefect.states import Cancelled, Crashed, State

from flows.deployments import own_deployments
from pipeline.folder_lock import try_lock

logger = logging.getLogger(__name__)

FOLDER = Path(".pneumoflow/flow_runs")
_HOST = "pneumoflow.host"
_AT_WORK = [StateType.RUNNING, StateType.PENDING, StateType.CANCELLING]
# A run that no process has marked after this time never had a process.
_TO_START = {StateType.PENDING: timedelta(minutes=3)}
_TO_MARK = timedelta(seconds=60)
# How long the file of a run is kept that this server does not know (another server may know it, or none).
_KEPT = timedelta(days=30)
_marks: list[int] = []


def mark_alive(client: SyncPrefectClient, run: UUID) -> None:
    """Mark a run as worked on by this process, until the process ends."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(FOLDER / str(run), os.O_RDWR | os.O_CREAT, 0o644)
    try_lock(descriptor)
    _marks.append(descriptor)  # never closed: the run's last state is reported after its function ends
    client.update_flow_run_labels(run, {_HOST: socket.gethostname()})


def close_dead_runs() -> None:
    """Close this folder's runs whose process is gone: as crashed, or as cancelled if they were being cancelled."""
    try:
        with get_client(sync_client=True) as client:
            _close_marked(client)
            _close_unmarked(client)
    except (httpx.HTTPError, OSError) as error:
        logger.warning("runs that were killed may still be called Running (%s)", type(error).__name__)


def _close_marked(client: SyncPrefectClient) -> None:
    for path in sorted(FOLDER.glob("*")):
        if _is_held(path):
            continue
        try:
            _close(client, client.read_flow_run(UUID(path.name)))
        except (ObjectNotFound, ValueError):
            if datetime.now(UTC) - datetime.fromtimestamp(path.stat().st_mtime, UTC) < _KEPT:
                continue
        path.unlink(missing_ok=True)


def _is_held(path: Path) -> bool:
    try:
        descriptor = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        return not try_lock(descriptor)
    finally:
        os.close(descriptor)


def _close_unmarked(client: SyncPrefectClient) -> None:
    """Close runs of this folder's deployments that were killed before they could mark themselves."""
    if not (deployments := own_deployments(client)):
        return
    wanted = FlowRunFilter(
        deployment_id=FlowRunFilterDeploymentId(any_=deployments),
        state=FlowRunFilterState(type=FlowRunFilterStateType(any_=_AT_WORK)),
    )
    for run in client.read_flow_runs(flow_run_filter=wanted):
        if _is_here(run) and not (FOLDER / str(run.id)).exists() and _is_overdue(run):
            _close(client, run)


def _is_here(run: FlowRun) -> bool:
    """Return whether a run works on this machine: no other can judge whether its process is gone."""
    here = socket.gethostname()
    # A worker notes its host and the number of the process; the run itself notes the host when it begins.
    host = (run.infrastructure_pid or here).partition(":")[0]
    return run.labels.get(_HOST, host) == here


def _is_overdue(run: FlowRun) -> bool:
    if run.state is None:
        return False
    return datetime.now(UTC) - run.state.timestamp > _TO_START.get(run.state.type, _TO_MARK)


def _close(client: SyncPrefectClient, run: FlowRun) -> None:
    if run.state is None or run.state.type not in _AT_WORK:
        return
    ended: State[None] = Crashed(message="its process is gone: it was killed, or the machine went down")
    if run.state.type == StateType.CANCELLING:
        ended = Cancelled(message="its process is gone")
    logger.warning("flow run %s (%s): its process is gone; closed as %s", run.name, run.id, ended.name)
    client.set_flow_run_state(run.id, ended, force=True)
    unfinished = TaskRunFilter(state=TaskRunFilterState(type=TaskRunFilterStateType(any_=_AT_WORK)))
    of_run = FlowRunFilter(id=FlowRunFilterId(any_=[run.id]))
    for task in client.read_task_runs(flow_run_filter=of_run, task_run_filter=unfinished):
        client.set_task_run_state(task.id, Crashed(message="its process is gone"), force=True)
