"""MLflow, and nothing but: the one module that talks to the tracking store."""

import base64
import json
import logging
import os
import socket
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from itertools import groupby
from pathlib import Path
from typing import Any

# Before the import: log_model would otherwise run pip to check what is pinned below.
os.environ.setdefault("MLFLOW_SKIP_PIP_REQUIREMENTS_CHECK", "true")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
# Its bars become lines of noise in a log.
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
# MLflow would try for minutes; what must not be lost waits on disk instead.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")

import mlflow
import mlflow.pyfunc
import pandas as pd
import psutil
from filelock import Timeout
from mlflow.data.meta_dataset import MetaDataset
from mlflow.entities import Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor
from mlflow.types import ColSpec, DataType, Schema

from pipeline.errors import Killed, UserError
from pipeline.spool import SPOOL, Entry, Spool, left_behind
from pipeline.stopping import Stopping, stop_signals

logger = logging.getLogger(__name__)

EXPERIMENT = "rsna-pneumonia"
DEFAULT_URI = "sqlite:///mlflow.db"
MODEL_NAME = "rsna-retinanet"
_PID, _HOST = "pneumoflow.pid", "pneumoflow.host"
# What the served model needs; the tracking server's machine has no training environment.
_SERVING_PACKAGES = (
    "mlflow", "numpy", "opencv-python-headless", "pandas", "pydantic", "pydicom", "pylibjpeg", "pylibjpeg-libjpeg",
    "pylibjpeg-openjpeg", "safetensors", "timm", "torch", "torchvision",
)  # fmt: skip
_MODEL_DESCRIPTION = (
    "Boxes lung opacities on frontal chest radiographs. Takes DICOM files (base64, column `dicom`);"
    " answers with boxes in pixels of the original image, in the RSNA challenge's format, and an image score."
)
_PARAM_LENGTH = 500
_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 1.0, 30.0
# Seconds for the last metrics to arrive; who asked a process to end does not want to wait.
_LAST_WAIT = {"FINISHED": 20.0, "FAILED": 10.0, "KILLED": 5.0}
# Without it MLflow's pages open on tools for language models.
_EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}


def tracking_uri() -> str:
    """``MLFLOW_TRACKING_URI``, or a database in the working folder."""
    return os.environ.get("MLFLOW_TRACKING_URI", DEFAULT_URI)


def _send(client: mlflow.MlflowClient, run_id: str, entries: list[Entry]) -> None:
    """Log entries in their order. MLflow keeps a metric of the same time, step and value once: sent twice is fine."""
    for is_metric, part in groupby(entries, key=lambda entry: "key" in entry):
        if is_metric:
            client.log_batch(run_id, metrics=[Metric(**entry) for entry in part])
        else:
            for entry in part:
                client.set_terminated(run_id, entry["status"])


class Courier:
    """A thread that delivers a spool, and tries again for as long as it takes."""

    def __init__(self, client: mlflow.MlflowClient, spool: Spool) -> None:
        self._client, self._spool = client, spool
        self._ending = threading.Event()
        self._arrived = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        pause = _PAUSE_SECONDS
        while True:
            ending = self._ending.wait(pause)
            try:
                self._spool.deliver(partial(_send, self._client))
                pause = _PAUSE_SECONDS
                if ending:
                    self._arrived = True
                    return
            except (MlflowException, OSError) as error:
                if pause == _PAUSE_SECONDS:
                    logger.warning("MLflow does not take metrics (%s); they wait on disk", type(error).__name__)
                pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
                if ending:
                    time.sleep(_PAUSE_SECONDS)

    def finish(self, seconds: float) -> bool:
        """Deliver all that is left, in at most so many seconds; whether it arrived."""
        self._ending.set()
        self._thread.join(seconds)
        return self._arrived


class TrackedRun:
    """One MLflow run: parameters, metrics, tags, files, data sets, the model.

    Metrics go to a spool on this disk, and from there to the store by a thread of their own: the
    caller never waits for a server, and a dead one loses nothing.

    Attributes:
        run_id: MLflow's.
        stopping: whether a signal has asked this process to end.
    """

    def __init__(self, client: mlflow.MlflowClient, run: Run, spool: Spool, stopping: Stopping) -> None:
        self._client, self.run_id, self._experiment = client, run.info.run_id, run.info.experiment_id
        self.stopping = stopping
        self._spool, self._courier = spool, Courier(client, spool)
        self._params = dict(run.data.params)
        # A resumed run repeats the steps since its last checkpoint; those are noted already.
        stored = {key: _last_step(client, run.info.run_id, key) for key in run.data.metrics}
        noted = spool.last_steps()
        self._logged = {key: max(stored.get(key, -1), noted.get(key, -1)) for key in stored.keys() | noted.keys()}

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Log nested values under dotted keys; what the run has already is left alone."""
        flat = {key: str(value)[:_PARAM_LENGTH] for key, value in _flatten(params)}
        new = [Param(key, value) for key, value in flat.items() if key not in self._params]
        self._client.log_batch(self.run_id, params=new)

    def log_metrics(self, metrics: Mapping[str, float | None], step: int) -> None:
        """Note metrics, to be sent soon. None and steps that were noted before are passed over."""
        now = int(time.time() * 1000)
        entries = [
            {"key": key, "value": float(value), "timestamp": now, "step": step}
            for key, value in metrics.items()
            if value is not None and step > self._logged.get(key, -1)
        ]
        self._logged |= {str(entry["key"]): step for entry in entries}
        self._spool.append(entries)

    def flush(self) -> None:
        """Make sure that what was noted outlives this machine's power."""
        self._spool.sync()

    def close(self, status: str) -> None:
        """Note the run's end and wait a little for all to arrive; say so where it does not."""
        self._spool.append([{"status": status}])
        arrived = self._courier.finish(_LAST_WAIT[status])
        if not arrived:
            logger.warning(
                "MLflow at %s does not answer: the run's metrics wait in %s; `pneumoflow sync` delivers them",
                tracking_uri(), SPOOL,
            )  # fmt: skip
        self._spool.close(remove=arrived)

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags, replacing former values."""
        self._client.log_batch(self.run_id, tags=[RunTag(key, value) for key, value in tags.items()])

    def log_files(self, path: Path, artifact_path: str = "") -> None:
        """Log a file, or the files of a folder."""
        log = self._client.log_artifacts if path.is_dir() else self._client.log_artifact
        log(self.run_id, str(path), artifact_path or None)

    def log_text(self, text: str, name: str) -> None:
        """Log ``text`` as the artifact ``name``."""
        self._client.log_text(self.run_id, text, name)

    def log_pictures(self, pictures: Mapping[str, bytes]) -> None:
        """Log pictures, artifact name -> bytes; a server that does not take them is no reason to stop."""
        with tempfile.TemporaryDirectory() as folder:
            for name, content in pictures.items():
                path = Path(folder) / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
            try:
                self._client.log_artifacts(self.run_id, folder)
            except (MlflowException, OSError) as error:
                logger.warning("MLflow does not take %s (%s)", ", ".join(pictures), type(error).__name__)

    @contextmanager
    def system_metrics(self) -> Iterator[None]:
        """Inside the block, log load and memory of CPU and GPU every ten seconds, as ``system/...``."""
        logging.getLogger("mlflow.system_metrics").setLevel(logging.ERROR)  # says that there is no GPU
        monitor = SystemMetricsMonitor(self.run_id, sampling_interval=10, resume_logging=True)
        monitor.start()
        try:
            yield
        finally:
            monitor.finish()

    def log_dataset(self, name: str, digest: str, source: str, contexts: Mapping[str, int]) -> None:
        """Record which version of a data set each split was taken from, and how many studies it has."""
        with mlflow.start_run(self.run_id):
            for context, studies in contexts.items():
                # One name each: a run shows a data set once, whatever it was used for.
                dataset = MetaDataset(  # type: ignore[abstract]
                    _source(source), name=f"{name} {context}", digest=digest[:36] or None
                )
                mlflow.log_input(dataset, context=context, tags={"studies": str(studies)})

    def describe(self, text: str) -> None:
        """Set the description (Markdown) that the run's page shows."""
        self.set_tags({"mlflow.note.content": text})

    def log_model(
        self, folder: Path, metrics: Mapping[str, float | None], step: int, example: bytes, description: str
    ) -> str:
        """Log and register the model in ``folder`` as a pyfunc; returns its URI.

        ``metrics`` are logged at ``step`` for the run and the model. ``example`` is a DICOM file
        that shows what the model takes; it is stored beside it. ``description`` (Markdown) goes to
        the registered version.
        """
        code = Path(__file__).resolve().parent
        with mlflow.start_run(self.run_id):
            info = mlflow.pyfunc.log_model(
                name="model",
                python_model=str(code / "delivery" / "mlflow_model.py"),
                artifacts={"model": str(folder)},
                code_paths=[str(code)],
                signature=_signature(),
                input_example=pd.DataFrame({"dicom": [base64.b64encode(example).decode()]}),
                pip_requirements=_pinned(_SERVING_PACKAGES),
                registered_model_name=MODEL_NAME,
                metadata={"format": "safetensors"},
            )
            known = {key: value for key, value in metrics.items() if value is not None}
            mlflow.log_metrics(known, step=step, model_id=info.model_id)
        if info.registered_model_version is not None:
            version_number = str(info.registered_model_version)
            self._client.update_registered_model(MODEL_NAME, _MODEL_DESCRIPTION)
            self._client.update_model_version(MODEL_NAME, version_number, description)
            self._client.set_registered_model_alias(MODEL_NAME, "challenger", version_number)
        return str(info.model_uri)


@contextmanager
def tracked_run(run_id: str | None, tags: Mapping[str, str]) -> Iterator[TrackedRun]:
    """Open a run, new or by its id, and close it as what it became.

    FINISHED only when the block ends; KILLED on SIGTERM and SIGINT; FAILED on any other exception.
    Runs of this machine that are RUNNING though their process is gone are closed as FAILED first.
    """
    client = _client()
    experiment = _experiment(client)
    sync_left_behind(client)
    _close_stale_runs(client, experiment)
    run = _open_run(client, experiment, run_id)
    with stop_signals() as stopping:
        tracked = TrackedRun(client, run, _own_spool(run.info.run_id), stopping)
        tracked.set_tags({**tags, _PID: str(os.getpid()), _HOST: socket.gethostname()})
        status = "FAILED"
        try:
            yield tracked
            status = "FINISHED"
        except (Killed, KeyboardInterrupt):
            status = "KILLED"
            raise
        finally:
            tracked.close(status)


def _own_spool(run_id: str) -> Spool:
    try:
        return Spool(run_id)
    except Timeout:
        raise UserError(f"MLflow run {run_id}: another process is writing to it; wait for it, or end it") from None


def sync_left_behind(client: mlflow.MlflowClient | None = None) -> tuple[int, int]:
    """Deliver what former runs of this folder left in their spools; returns how many entries arrived and wait.

    A server that does not answer is no reason to stop: the entries wait on.
    """
    client = client or _client()
    delivered = waiting = 0
    for spool in left_behind():
        try:
            delivered += spool.deliver(partial(_send, client))
        except (MlflowException, OSError) as error:
            logger.warning("MLflow run %s: %s", spool.run_id, " ".join(str(error).split())[:200])
            waiting += 1
        spool.close(remove=True)
    return delivered, waiting


def run_place(run_id: str) -> str:
    """How to open a run: its URL on a tracking server, or the command that starts one."""
    client = _client()
    try:
        experiment = client.get_run(run_id).info.experiment_id
    except MlflowException:
        return f"run {run_id} is not in {tracking_uri()}"
    if tracking_uri().startswith("http"):
        return f"{tracking_uri().rstrip('/')}/#/experiments/{experiment}/runs/{run_id}"
    return f"run {run_id} in {tracking_uri()}; `make ui` shows it at #/experiments/{experiment}/runs/{run_id}"


def download_model(uri: str) -> Path:
    """Fetch the model folder (weights and configuration) of a run's or a registered model.

    Raises:
        UserError: there is no such model.
    """
    mlflow.set_tracking_uri(tracking_uri())
    try:
        local = Path(mlflow.artifacts.download_artifacts(uri, dst_path=tempfile.mkdtemp(prefix="pneumoflow-")))
    except (MlflowException, OSError) as error:
        raise UserError(f"{uri}: no such model in {tracking_uri()}: {' '.join(str(error).split())[:200]}") from None
    found = sorted(local.rglob("model.json"))
    if not found:
        raise UserError(f"{uri}: not a model of this pipeline; it has no model.json")
    return found[0].parent


def _client() -> mlflow.MlflowClient:
    mlflow.set_tracking_uri(tracking_uri())
    logging.getLogger("alembic").setLevel(logging.WARNING)  # one line per migration of a new database
    return mlflow.MlflowClient(tracking_uri())


def _experiment(client: mlflow.MlflowClient) -> str:
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME", EXPERIMENT)
    try:
        found = client.get_experiment_by_name(name)
        experiment = found.experiment_id if found else client.create_experiment(name, tags=_EXPERIMENT_TAGS)
    except MlflowException as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"MLFLOW_TRACKING_URI = {tracking_uri()}: cannot be used: {reason}") from None
    mlflow.set_experiment(experiment_id=experiment)
    return str(experiment)


def _open_run(client: mlflow.MlflowClient, experiment: str, run_id: str | None) -> Run:
    if run_id is not None:
        try:
            run = client.get_run(run_id)
            client.update_run(run_id, status="RUNNING")
            return run
        except MlflowException:
            # A model restored from DVC's cache may come from another machine's store.
            logger.warning("MLflow run %s is not in %s; a new run takes its place", run_id, tracking_uri())
    return client.create_run(experiment)


def _close_stale_runs(client: mlflow.MlflowClient, experiment: str) -> None:
    running = client.search_runs([experiment], "attributes.status = 'RUNNING'")
    for run in running:
        tags = run.data.tags
        if tags.get(_HOST) == socket.gethostname() and not psutil.pid_exists(int(tags.get(_PID, "0"))):
            logger.warning("MLflow run %s: its process is gone; closed as FAILED", run.info.run_id)
            client.set_terminated(run.info.run_id, "FAILED")


def _last_step(client: mlflow.MlflowClient, run_id: str, key: str) -> int:
    return max(metric.step for metric in client.get_metric_history(run_id, key))


def _flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield prefix + key, json.dumps(value) if isinstance(value, (list, tuple)) else value


def _source(path: str) -> Any:
    with warnings.catch_warnings():
        # MLflow registers its class for local folders twice and warns that it must choose.
        warnings.filterwarnings("ignore", "The specified dataset source can be interpreted")
        return mlflow.data.dataset_source_registry.resolve_dataset_source(path)


def _signature() -> ModelSignature:
    outputs = Schema([ColSpec(DataType.string, "PredictionString"), ColSpec(DataType.double, "image_score")])
    return ModelSignature(Schema([ColSpec(DataType.string, "dicom")]), outputs)


def _pinned(packages: tuple[str, ...]) -> list[str]:
    pins = []
    for name in packages:
        try:
            # '2.9.0+cu128' names a build that the package index does not have.
            pins.append(f"{name}=={version(name).split('+')[0]}")
        except PackageNotFoundError:
            continue
    return pins
