"""A run that holds others, such as those of a sweep; several processes may work under it at once."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import mlflow
from mlflow.entities import RunTag

from pipeline.redaction import redact
from pipeline.tracking.asking import tell
from pipeline.tracking.heartbeat import Heartbeat, identity
from pipeline.tracking.run import closed_by, open_run
from pipeline.tracking.store import open_client, open_experiment

PARENT = "mlflow.parentRunId"


class ParentRun:
    """A run that holds others, which carry its id in the tag `PARENT`."""

    def __init__(self, client: mlflow.MlflowClient, run_id: str) -> None:
        self._client, self.run_id = client, run_id

    def log_metrics(self, metrics: Mapping[str, float]) -> None:
        """Log metrics of all its runs together."""
        for key, value in metrics.items():
            self._client.log_metric(self.run_id, key, value)

    def log_file(self, path: Path) -> None:
        """Log a file."""
        self._client.log_artifact(self.run_id, str(path))


@contextmanager
def parent_run(run_id: str | None, tags: Mapping[str, str]) -> Iterator[ParentRun]:
    """Open such a run, new or by its id. It is RUNNING while a process works under it; the last one sets its status."""
    client = open_client()
    run = open_run(client, open_experiment(client), run_id)
    parent = ParentRun(client, run.info.run_id)
    known = [RunTag(key, redact(value)) for key, value in {**tags, **identity()}.items()]
    tell("tags", lambda: client.log_batch(parent.run_id, tags=known))
    heartbeat = Heartbeat(client, run)

    def close(status: str) -> None:
        heartbeat.stop()
        tell("closing the run", lambda: client.set_terminated(parent.run_id, status))

    with closed_by(close):
        yield parent
