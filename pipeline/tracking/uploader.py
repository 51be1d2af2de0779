"""The delivery to MLflow of the entries and files that runs leave on this disk."""

import json
import logging
import threading
import time
from functools import partial
from itertools import groupby
from pathlib import Path

import mlflow
from mlflow.entities import Metric
from mlflow.exceptions import MlflowException

from pipeline.escaping import shortened
from pipeline.redaction import redact
from pipeline.tracking.asking import FINAL
from pipeline.tracking.outbox import Entry, Outbox, left_behind
from pipeline.tracking.store import open_client

logger = logging.getLogger(__name__)

_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 1.0, 30.0


def deliver(client: mlflow.MlflowClient, outbox: Outbox, *, left_behind: bool = False) -> int:
    """Deliver the entries and files that wait in an outbox; what the store refuses for its content is put aside.

    With ``left_behind``, another machine may have taken the run up since: a step that the store has from the same time
    or later is not sent.

    Returns:
        The number of entries and files that were delivered.

    Raises:
        Exception: the store does not answer, or does not let this process write. Each kind of artifact store has a
            library of its own, with its own errors.
    """
    send = partial(_send_new if left_behind else _send, client, outbox)
    return outbox.deliver(send) + outbox.deliver_files(partial(_send_file, client))


def _send_new(client: mlflow.MlflowClient, outbox: Outbox, run_id: str, entries: list[Entry]) -> None:
    noted: dict[tuple[str, int], int] = {}
    for key in {entry["key"] for entry in entries if "key" in entry}:
        for metric in client.get_metric_history(run_id, key):
            noted[key, metric.step] = max(metric.timestamp, noted.get((key, metric.step), 0))
    new = [one for one in entries if "key" not in one or noted.get((one["key"], one["step"]), -1) < one["timestamp"]]
    _send(client, outbox, run_id, new)


def _send_file(client: mlflow.MlflowClient, run_id: str, path: Path, folder: str) -> None:
    try:
        client.log_artifact(run_id, str(path), folder or None)
    except MlflowException as error:
        if error.error_code not in FINAL:
            raise
        logger.warning("MLflow refuses %s of run %s: %s", path.name, run_id, shortened(redact(str(error))))


def _send(client: mlflow.MlflowClient, outbox: Outbox, run_id: str, entries: list[Entry]) -> None:
    """Log entries in order. Sending twice is harmless: MLflow keeps a metric of the same time, step and value once."""
    for is_metric, group in groupby(entries, key=lambda entry: "key" in entry):
        part = list(group)
        try:
            _send_alike(client, run_id, part, is_metric=is_metric)
        except MlflowException as error:
            if error.error_code not in FINAL:
                raise
            if len(part) > 1:
                for entry in part:
                    _send(client, outbox, run_id, [entry])
            else:
                outbox.put_aside([json.dumps(part[0]).encode()], "are refused by the store")


def _send_alike(client: mlflow.MlflowClient, run_id: str, entries: list[Entry], *, is_metric: bool) -> None:
    if is_metric:
        client.log_batch(run_id, metrics=[Metric(**entry) for entry in entries])
    else:
        for entry in entries:
            client.set_terminated(run_id, entry["status"], entry.get("end_time"))


class Uploader:
    """A thread that delivers an outbox, and tries again for as long as it takes."""

    def __init__(self, client: mlflow.MlflowClient, outbox: Outbox) -> None:
        self._client, self._outbox = client, outbox
        self._ending, self._given_up = threading.Event(), threading.Event()
        self._arrived = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        pause = _PAUSE_SECONDS
        while True:
            ending = self._ending.wait(pause)
            if self._given_up.is_set():
                return  # from now on, whoever opens the outbox delivers it
            try:
                deliver(self._client, self._outbox)
                pause = _PAUSE_SECONDS
                if ending:
                    self._arrived = True
                    return
            except Exception as error:  # noqa: BLE001 - see `deliver`
                if pause == _PAUSE_SECONDS:
                    logger.warning("MLflow does not accept data (%s); they wait on disk", type(error).__name__)
                pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
                if ending:
                    time.sleep(_PAUSE_SECONDS)

    def finish(self, seconds: float) -> bool:
        """Deliver all remaining entries within ``seconds``, or give up; return whether they arrived."""
        self._ending.set()
        self._thread.join(seconds)
        self._given_up.set()
        return self._arrived


def sync_left_behind(client: mlflow.MlflowClient | None = None) -> tuple[int, int]:
    """Deliver the entries that former runs of this folder left in their outboxes.

    If a server does not answer, the entries keep waiting, and the next outbox is tried.

    Returns:
        The numbers of entries that arrived, and of outboxes that still wait.
    """
    client = client or open_client()
    delivered = waiting = 0
    for outbox in left_behind():
        try:
            delivered += deliver(client, outbox, left_behind=True)
        except Exception as error:  # noqa: BLE001 - see `deliver`
            logger.warning("MLflow run %s: %s", outbox.run_id, shortened(redact(str(error))))
            waiting += 1
        outbox.close(remove=True)
    return delivered, waiting
