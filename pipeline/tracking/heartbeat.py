"""The heartbeat of a run that is at work, and the closing of runs without one.

A run stays RUNNING in MLflow until its status is changed, and a process that is killed cannot change it.
Therefore each run notes the time in a tag every few seconds, and other runs close those whose note is old.
"""

import contextlib
import logging
import os
import socket
import threading
import time
from collections.abc import Mapping
from pathlib import Path

import mlflow
from mlflow.entities import Run

from pipeline.tracking.asking import FAILURES, MissingError, ask

logger = logging.getLogger(__name__)

PID, HOST, PROCESSES, HEARTBEAT = (f"pneumoflow.{name}" for name in ("pid", "host", "processes", "heartbeat"))
_BEAT_SECONDS = 15.0
# Beats may be late: a server may be away for a moment, and clocks may differ.
SILENT_SECONDS = 120.0
_BEATS_BETWEEN_LOOKS = 4


def identity() -> dict[str, str]:
    """Return tags that say which process works on a run, and when it last gave a sign of life."""
    return {
        PID: str(os.getpid()),
        HOST: socket.gethostname(),
        PROCESSES: _process_table(),
        HEARTBEAT: str(int(time.time())),
    }


def _process_table() -> str:
    """Name the process table in which this process has its number: two containers may share host names and numbers."""
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    return ""


class Heartbeat:
    """A thread that notes the time for a run until it is stopped, and closes silent runs of its experiment."""

    def __init__(self, client: mlflow.MlflowClient, run: Run) -> None:
        self._client, self._run_id, self._experiment = client, run.info.run_id, run.info.experiment_id
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self._thread.start()

    def _beat(self) -> None:
        count = 0
        while not self._ended.wait(_BEAT_SECONDS):
            count += 1
            with contextlib.suppress(*FAILURES):  # the next beat tries again
                self._client.set_tag(self._run_id, HEARTBEAT, str(int(time.time())))
                if self._client.get_run(self._run_id).info.status != "RUNNING":
                    # While the store could not be reached, another process took this run for dead.
                    self._client.update_run(self._run_id, status="RUNNING")
                if count % _BEATS_BETWEEN_LOOKS == 0:
                    _close_silent(self._client, self._experiment)

    def stop(self) -> None:
        """Stop the thread; nothing is written after this."""
        self._ended.set()
        self._thread.join()


def close_silent_runs(client: mlflow.MlflowClient, experiment: str) -> None:
    """Close as FAILED the runs that are RUNNING although their process has ended.

    Raises:
        UserError: the store cannot be queried.
    """
    with contextlib.suppress(MissingError):
        ask("looking for runs whose process is gone", lambda: _close_silent(client, experiment))


def _close_silent(client: mlflow.MlflowClient, experiment: str) -> None:
    for run in client.search_runs([experiment], "attributes.status = 'RUNNING'"):
        tags = run.data.tags
        if _has_ended(tags):
            logger.warning("MLflow run %s: its process is gone; closed as FAILED", run.info.run_id)
            client.set_terminated(run.info.run_id, "FAILED", _last_sign(tags))


def _has_ended(tags: Mapping[str, str]) -> bool:
    pid, beat = tags.get(PID, ""), tags.get(HEARTBEAT, "")
    if not pid.isdigit():
        return False  # not a run of this pipeline
    here = _process_table()
    same_table = tags[PROCESSES] == here if here and PROCESSES in tags else not beat and _same_host(tags)
    if same_table and not _exists(int(pid)):
        return True
    return beat.isdigit() and time.time() - int(beat) > SILENT_SECONDS


def _same_host(tags: Mapping[str, str]) -> bool:
    return tags.get(HOST) == socket.gethostname()


def _last_sign(tags: Mapping[str, str]) -> int | None:
    """Return the time of the run's last sign of life, in milliseconds."""
    beat = tags.get(HEARTBEAT, "")
    return int(beat) * 1000 if beat.isdigit() else None


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True
