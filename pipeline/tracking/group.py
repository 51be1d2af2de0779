"""A run that holds others, such as those of a sweep; several processes may work under it at once."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import mlflow
from mlflow.entities import RunTag

from pipeline.errors import Killed
from pipeline.redaction import redact
from pipeline.tracking.asking import tell
from pipeline.tracking.heartbeat import Heartbeat, identity
from pipeline.tracking.run import open_run
from pipeline.tracking.store import open_client, open_experiment

PARENT = "mlflow.parentRunId"


class RunGroup:
    """The run that holds others: they carry its id in the tag `PARENT`."""

    def __init__(self, client: mlflow.MlflowClient, run_id: str) -> None:
        self._client, self.run_id = client, run_id

    def log_metrics(self, metrics: Mapping[str, float]) -> None:
        """Log what came of all of them."""
        for key, value in metrics.items():
            self._client.log_metric(self.run_id, key, value)

    def log_file(self, path: Path) -> None:
        """Log a file."""
        self._client.log_artifact(self.run_id, str(path))


@contextmanager
def run_group(run_id: str | None, tags: Mapping[str, str]) -> Iterator[RunGroup]:
    """Open such a run, new or by its id. It is RUNNING while anyone works under it, then what the last made of it."""
    client = open_client()
    run = open_run(client, open_experiment(client), run_id)
    group = RunGroup(client, run.info.run_id)
    known = [RunTag(key, redact(value)) for key, value in {**tags, **identity()}.items()]
    tell("tags", lambda: client.log_batch(group.run_id, tags=known))
    heartbeat = Heartbeat(client, run)
    status = "FAILED"
    try:
        yield group
        status = "FINISHED"
    except (Killed, KeyboardInterrupt):
        status = "KILLED"
        raise
    finally:
        heartbeat.stop()
        tell("closing the run", lambda: client.set_terminated(group.run_id, status))
