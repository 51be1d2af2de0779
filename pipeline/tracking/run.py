"""One training run in MLflow."""

import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import mlflow
from filelock import Timeout
from mlflow.entities import DatasetInput, InputTag, Param, Run, RunTag
from mlflow.utils.mlflow_tags import (
    MLFLOW_DATASET_CONTEXT,
    MLFLOW_LOGGED_ARTIFACTS,
    MLFLOW_PARENT_RUN_ID,
    MLFLOW_RUN_NAME,
)

from pipeline.errors import Killed, UserError
from pipeline.redaction import redact
from pipeline.stopping import Stopping, stop_signals
from pipeline.tracking.asking import MissingError, ask, tell
from pipeline.tracking.datasets import DataVersion
from pipeline.tracking.heartbeat import Heartbeat, close_silent_runs, identity
from pipeline.tracking.outbox import OUTBOX, Outbox
from pipeline.tracking.pages import run_name, run_page
from pipeline.tracking.place import shown_uri
from pipeline.tracking.store import find_run, open_client, open_experiment, pages_server
from pipeline.tracking.system_metrics import measure_system
from pipeline.tracking.uploader import Uploader, sync_left_behind

logger = logging.getLogger(__name__)

# The step of numbers that a run ends with: MLflow draws metrics that have this step only as bars, others as curves.
FINAL = 0
_PARAM_LENGTH = 500
# Runs among which the run before is looked for: a search may be followed by many trials.
_LOOKED_AT = 200
_PAUSE_SECONDS = 0.2
# Seconds for the last metrics to arrive; after a signal to end the process, the wait is short.
_LAST_WAIT = {"FINISHED": 20.0, "FAILED": 10.0, "KILLED": 5.0}


class TrackedRun:
    """One MLflow run: parameters, metrics, tags, files, data sets, the model.

    Metrics and pictures go to an outbox on this disk, and a separate thread sends them from there to the store: the
    caller never waits for a server, and nothing is lost if the server is dead.

    Attributes:
        run_id: MLflow's id of the run.
        stopping: whether a signal has asked this process to end.
    """

    def __init__(self, client: mlflow.MlflowClient, run: Run, outbox: Outbox, stopping: Stopping) -> None:
        self._client, self.run_id = client, run.info.run_id
        # MLflow shows the time from start to end as the run's duration; the time since it last ended is no part of it.
        self._rested = 0 if run.info.end_time is None else max(0, _now() - run.info.end_time)
        self._experiment = run.info.experiment_id
        self.stopping = stopping
        self._outbox, self._uploader, self._heartbeat = outbox, Uploader(client, outbox), Heartbeat(client, run)
        self._params = dict(run.data.params)
        # A resumed run repeats the steps since its last checkpoint; those are noted already.
        stored = {key: _last_value(client, run.info.run_id, key) for key in run.data.metrics}
        self._logged = stored | {
            key: last for key, last in outbox.last_values().items() if key not in stored or last[0] >= stored[key][0]
        }

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Log nested values under dotted keys; params that the run has already are left alone."""
        flat = {key: redact(str(value))[:_PARAM_LENGTH] for key, value in _flatten(params)}
        new = [Param(key, value) for key, value in flat.items() if key not in self._params]
        self._write("params", lambda: self._client.log_batch(self.run_id, params=new))
        self._params |= {param.key: param.value for param in new}

    def name_by_changes(self, what: str) -> None:
        """Name the run by the params that differ from those of the run before, or by ``what`` if it is the first."""
        former = tell("looking for the run before", lambda: _run_before(self._client, self.run_id))
        changes = None
        if former is not None:
            changes = [(key, value) for key, value in self._params.items() if former.get(key) != value]
        self.set_tags({MLFLOW_RUN_NAME: run_name(what, changes, self.run_id)})

    def log_metrics(self, metrics: Mapping[str, float | None], step: int, *, correct: bool = False) -> None:
        """Note metrics, which are sent soon. None values and steps that were noted before are passed over.

        With ``correct``, another value for the last step that was noted is noted too, and MLflow shows it instead.
        """
        now = _now()
        values = {key: float(value) for key, value in metrics.items() if value is not None}
        new = {
            key: value
            for key, value in values.items()
            if step > self._last_step(key)
            or (correct and step == self._last_step(key) and value != self._logged[key][1])
        }
        self._logged |= {key: (step, value) for key, value in new.items()}
        self._outbox.append([{"key": key, "value": new[key], "timestamp": now, "step": step} for key in new])

    def _last_step(self, key: str) -> int:
        return self._logged[key][0] if key in self._logged else -1

    def history(self, key: str) -> list[tuple[int, float]]:
        """Return the values of a metric that have arrived at the store: pairs of step and value, in order."""
        values = tell(f"the history of {key}", lambda: self._client.get_metric_history(self.run_id, key))
        return sorted((metric.step, metric.value) for metric in values)

    def seconds_between_values(self, key: str) -> float | None:
        """Return the time from a metric's first value to its last, pauses included; None if it has none."""
        values = tell(f"the history of {key}", lambda: self._client.get_metric_history(self.run_id, key))
        times = [metric.timestamp for metric in values]
        return (max(times) - min(times)) / 1000 if times else None

    def flush(self) -> None:
        """Make sure that the noted entries survive a power failure."""
        self._outbox.sync()

    def wait_until_sent(self, seconds: float) -> bool:
        """Wait until all metrics that were noted so far have arrived; return whether they did within ``seconds``."""
        size, end = self._outbox.size, time.monotonic() + seconds
        while not (arrived := self._outbox.has_delivered(size)) and time.monotonic() < end:
            time.sleep(_PAUSE_SECONDS)
        return arrived

    def close(self, status: str) -> None:
        """Note the run's end and wait a little for all entries to arrive; log a warning if they do not."""
        self._heartbeat.stop()
        self._outbox.append([{"status": status, "end_time": _now() - self._rested}])
        arrived = self._uploader.finish(_LAST_WAIT[status])
        if not arrived:
            logger.warning(
                "MLflow at %s does not answer: data of the run wait in %s; `pneumoflow sync` delivers them",
                shown_uri(), OUTBOX,
            )  # fmt: skip
        self._outbox.close(remove=arrived)

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags, replacing former values."""
        known = [RunTag(key, redact(value)) for key, value in tags.items()]
        self._write("tags", lambda: self._client.log_batch(self.run_id, tags=known))

    def log_files(self, path: Path, artifact_path: str = "") -> None:
        """Log a file, or the files of a folder."""
        log = self._client.log_artifacts if path.is_dir() else self._client.log_artifact
        self._write(path.name, lambda: log(self.run_id, str(path), artifact_path or None))

    def log_table(self, columns: Mapping[str, Sequence[object]], name: str) -> None:
        """Log columns of equal length as the artifact ``name`` (.json), which MLflow's pages show as a table.

        MLflow's own `log_table` would add the rows to those of an earlier evaluation of this run.
        """
        table = {"columns": list(columns), "data": [list(row) for row in zip(*columns.values(), strict=True)]}
        self._write(name, lambda: self._client.log_dict(self.run_id, table, name))
        self.set_tags({MLFLOW_LOGGED_ARTIFACTS: json.dumps([{"path": name, "type": "table"}])})

    def log_text(self, text: str, name: str) -> None:
        """Log ``text`` as the artifact ``name``."""
        self._write(name, lambda: self._client.log_text(self.run_id, redact(text), name))

    def _write(self, name: str, call: Callable[[], object]) -> None:
        """Write data that the run cannot do without.

        Raises:
            UserError: the store does not accept it, after some tries.
        """
        tell(f"writing {name} of run {self.run_id}", call)

    def log_pictures(self, pictures: Mapping[str, bytes]) -> None:
        """Note pictures, artifact name -> bytes, which are sent soon; if this disk is full, the run goes on without."""
        try:
            for name, content in pictures.items():
                self._outbox.add_file(name, content)
        except OSError as error:
            logger.warning("pictures of the run cannot be kept: %s: %s", error.filename, error.strerror)

    def system_metrics(self) -> AbstractContextManager[None]:
        """Log load and memory of CPU and GPU inside the block, every ten seconds, as ``system/...``."""
        first = 1 + max((step for key, (step, _) in self._logged.items() if key.startswith("system/")), default=-1)
        return measure_system(self.run_id, self.log_metrics, first)

    def log_dataset(self, version: DataVersion, contexts: Mapping[str, int]) -> None:
        """Record which version of a data set each split was taken from, and how many studies it has."""
        inputs = [
            DatasetInput(
                version.split(context)._to_mlflow_entity(),
                [InputTag(MLFLOW_DATASET_CONTEXT, context), InputTag("studies", str(studies))],
            )
            for context, studies in contexts.items()
        ]
        self._write("data sets", lambda: self._client.log_inputs(self.run_id, datasets=inputs))

    def page(self, file: str) -> str:
        """Return the address of a file of the run, relative to MLflow's pages."""
        return run_page("", self._experiment, self.run_id, file)

    def address(self) -> str:
        """Return the address of the run's page, on the tracking server or the one that `make ui` starts."""
        return run_page(pages_server(), self._experiment, self.run_id)

    def describe(self, text: str) -> None:
        """Set the description (Markdown) that the run's page shows."""
        self.set_tags({"mlflow.note.content": text})


@contextmanager
def closed_by(close: Callable[[str], None]) -> Iterator[None]:
    """Call ``close`` with the status that the block gives a run: FINISHED, KILLED by a signal, or FAILED."""
    status = "FAILED"
    try:
        yield
        status = "FINISHED"
    except (Killed, KeyboardInterrupt):
        status = "KILLED"
        raise
    finally:
        close(status)


@contextmanager
def tracked_run(run_id: str | None, tags: Mapping[str, str]) -> Iterator[TrackedRun]:
    """Open a run, new or by its id, and close it with its final status.

    FINISHED only if the block ends without an exception; KILLED on SIGTERM and SIGINT; FAILED on any other
    exception. Before that, runs that are RUNNING although their process is gone are closed as FAILED.

    Raises:
        UserError: the store cannot be used, or does not let this process write.
    """
    client = open_client()
    experiment = open_experiment(client)
    sync_left_behind(client)
    close_silent_runs(client, experiment)
    run = open_run(client, experiment, run_id)
    with stop_signals() as stopping:
        tracked = TrackedRun(client, run, _own_outbox(run.info.run_id), stopping)
        with closed_by(tracked.close):
            tracked.set_tags({**tags, **identity()})
            yield tracked


def _own_outbox(run_id: str) -> Outbox:
    try:
        return Outbox(run_id)
    except Timeout:
        raise UserError(f"MLflow run {run_id}: another process is writing to it; wait for it, or end it") from None


def open_run(client: mlflow.MlflowClient, experiment: str, run_id: str | None) -> Run:
    """Return the run, RUNNING again; a new one if there is no id, or the store does not know it.

    Raises:
        UserError: the store cannot be queried, or does not let this process write.
    """
    if run_id is not None:
        try:
            run = find_run(client, run_id)
            # The signs of life come first: a run that is RUNNING without them looks dead.
            ask("tags", lambda: client.log_batch(run_id, tags=[RunTag(*tag) for tag in identity().items()]))
            ask("opening the run again", lambda: client.update_run(run_id, status="RUNNING"))
            return run
        except MissingError:
            # A model restored from DVC's cache may come from another machine's store.
            logger.warning("MLflow run %s is not in %s; a new run takes its place", run_id, shown_uri())
    return tell("making a run", lambda: client.create_run(experiment, tags=identity()))


def _run_before(client: mlflow.MlflowClient, run_id: str) -> dict[str, str] | None:
    """Return the params of the newest run before this one that is no part of another; None if there is none."""
    own = client.get_run(run_id).info
    earlier = client.search_runs(
        [own.experiment_id], f"attributes.start_time < {own.start_time}", max_results=_LOOKED_AT,
        order_by=["attributes.start_time DESC"],
    )  # fmt: skip
    found = (run.data.params for run in earlier if run.data.params and MLFLOW_PARENT_RUN_ID not in run.data.tags)
    return next(found, None)


def _now() -> int:
    """Return the time in MLflow's unit, milliseconds."""
    return int(time.time() * 1000)


def _last_value(client: mlflow.MlflowClient, run_id: str, key: str) -> tuple[int, float]:
    last = max(client.get_metric_history(run_id, key), key=lambda metric: (metric.step, metric.timestamp))
    return last.step, last.value


def _flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield prefix + key, json.dumps(value) if isinstance(value, (list, tuple)) else value
