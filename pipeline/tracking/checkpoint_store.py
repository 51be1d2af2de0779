"""Copies of a run's checkpoints among its artifacts, from which another machine takes the run up.

checkpoints/step-00000120/          that checkpoint, and the best epochs' weights; the last two copies are kept
checkpoints/step-00000120/copied    written last: a copy without it was interrupted
"""

import logging
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import mlflow
from mlflow.entities import Run
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

from pipeline.errors import UserError
from pipeline.escaping import shortened
from pipeline.files import temporary_folder
from pipeline.redaction import redact
from pipeline.tracking.asking import tell
from pipeline.tracking.heartbeat import HOST, SILENT_SECONDS, close_silent_runs
from pipeline.tracking.place import shown_uri
from pipeline.tracking.registry import download_artifact
from pipeline.tracking.run import TrackedRun
from pipeline.tracking.store import open_client, open_experiment

logger = logging.getLogger(__name__)

TRAINING = "pneumoflow.training"  # the tag that holds the fingerprint of a run's params, data and code
_FOLDER, _COPIED, _KEPT = "checkpoints", "copied", 2
_LOOK_SECONDS = 5.0
_METRICS_SECONDS = 60.0
# For a copy that is under way. A process that is to end at once waits little.
_WAIT_SECONDS = {"FINISHED": 60.0, "FAILED": 1.0}
# Fills a folder with the newest checkpoint, and returns its name; None if there is none yet.
Snapshot = Callable[[Path], str | None]


@contextmanager
def copied_checkpoints(run: TrackedRun, beside: Path, snapshot: Snapshot, minutes: float) -> Iterator[None]:
    """Copy the newest checkpoint to the run's artifacts every few minutes; once the block has succeeded, remove all.

    A store that does not answer delays no training: the next copy is tried later.

    Args:
        run: the run that trains.
        beside: a folder on the disk of the checkpoints; ``snapshot`` may link files into a temporary folder there.
        snapshot: see `Snapshot`.
        minutes: the time between two copies; 0: none are made.
    """
    if not minutes:
        yield
        return
    copier = _Copier(run, beside, snapshot, 60 * minutes)
    try:
        yield
    except BaseException:
        copier.stop(_WAIT_SECONDS["FAILED"])
        raise
    copier.stop(_WAIT_SECONDS["FINISHED"])
    copier.remove_all()


class _Copier:
    def __init__(self, run: TrackedRun, beside: Path, snapshot: Snapshot, seconds: float) -> None:
        self._client, self._run, self._beside, self._snapshot = open_client(), run, beside, snapshot
        self._names: list[str] | None = None  # of the copies, oldest first; not known yet
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._copy_every, args=(seconds,), daemon=True)
        self._thread.start()

    def _copy_every(self, seconds: float) -> None:
        while not self._ended.wait(seconds):
            self._quietly("copying a checkpoint", self._copy)

    def _copy(self) -> None:
        if self._names is None:
            self._names = _listed(self._client, self._run.run_id, _FOLDER)
        with temporary_folder(self._beside) as folder:
            name = self._snapshot(folder)
            if name is None or name in self._names:
                return
            # The metrics first: a machine that goes on from the copy does not note the steps before it again.
            if not self._run.wait_until_sent(_METRICS_SECONDS):
                raise TimeoutError("the metrics before it have not arrived")
            self._client.log_artifacts(self._run.run_id, str(folder), f"{_FOLDER}/{name}")
            self._client.log_text(self._run.run_id, "", f"{_FOLDER}/{name}/{_COPIED}")
        self._names.append(name)
        while len(self._names) > _KEPT:
            self._remove(f"{_FOLDER}/{self._names.pop(0)}")

    def stop(self, seconds: float) -> None:
        """Let no further copy begin, and wait some seconds for one that is under way."""
        self._ended.set()
        self._thread.join(seconds)

    def remove_all(self) -> None:
        """Remove the copies: the training has ended, and nobody needs them."""
        self._quietly("removing the copies of checkpoints", lambda: self._remove(_FOLDER))

    def _remove(self, path: str) -> None:
        get_artifact_repository(self._client.get_run(self._run.run_id).info.artifact_uri).delete_artifacts(path)

    def _quietly(self, what: str, call: Callable[[], None]) -> None:
        try:
            call()
        # Each kind of artifact store has a library of its own, with its own errors.
        except Exception as error:  # noqa: BLE001
            logger.warning("MLflow run %s: %s: %s", self._run.run_id, what, shortened(redact(str(error))))


def find_copies(training: str, wait_seconds: float = SILENT_SECONDS + 30) -> str | None:
    """Return the run that began the training with this fingerprint elsewhere, was killed, and has copies; None if none.

    A run that still gives signs of life is waited for: it may have been killed a moment ago.

    Raises:
        UserError: another machine trains the same at this moment, or the store cannot be queried.
    """
    client = open_client()
    experiment = open_experiment(client)
    end = time.monotonic() + wait_seconds
    while True:
        close_silent_runs(client, experiment)
        runs = tell("looking for runs of the same training", lambda: _begun(client, experiment, training))
        if not (alive := [run for run in runs if run.info.status == "RUNNING"]):
            break
        if time.monotonic() >= end:
            host = alive[0].data.tags.get(HOST, "another machine")
            raise UserError(
                f"{shown_uri()}: run {alive[0].info.run_id} on {host} is the same training, and is at work; wait for it"
            )
        time.sleep(_LOOK_SECONDS)
    for run_id in [str(run.info.run_id) for run in runs if run.info.status != "FINISHED"]:
        if tell("looking for checkpoints", partial(_whole, client, run_id)):
            return run_id
    return None


def _begun(client: mlflow.MlflowClient, experiment: str, training: str) -> list[Run]:
    return list(client.search_runs([experiment], f"tags.`{TRAINING}` = '{training}'", order_by=["start_time DESC"]))


def fetch_copies(run_id: str, folder: Path) -> None:
    """Fetch all copies of a run into one new folder, as they lay in that of its checkpoints.

    Raises:
        UserError: the store cannot be queried, or lacks a file.
    """
    client = open_client()
    with temporary_folder(folder.parent) as temporary:
        for name in tell("looking for checkpoints", partial(_whole, client, run_id)):
            fetched = download_artifact(run_id, f"{_FOLDER}/{name}", temporary)
            (fetched / _COPIED).unlink()
            shutil.copytree(fetched, temporary / "all", dirs_exist_ok=True)
        (temporary / "all").rename(folder)


def _whole(client: mlflow.MlflowClient, run_id: str) -> list[str]:
    """Return the names of the copies that were not interrupted, oldest first."""
    names = _listed(client, run_id, _FOLDER)
    return [name for name in names if _COPIED in _listed(client, run_id, f"{_FOLDER}/{name}")]


def _listed(client: mlflow.MlflowClient, run_id: str, folder: str) -> list[str]:
    return sorted(Path(one.path).name for one in client.list_artifacts(run_id, folder))
