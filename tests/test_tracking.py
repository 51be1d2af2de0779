import os
import signal
import subprocess
import sys
import time

import mlflow
import psutil
import pytest

from pipeline.errors import UserError
from pipeline.tracking import MODEL_NAME, download_model, run_place, tracked_run

TAGS = {"git_commit": "abc"}


@pytest.fixture
def client(tmp_path):
    return mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")


def test_a_run_that_ends_is_finished(client):
    with tracked_run(None, TAGS) as run:
        run.log_params({"loss": {"alpha": 0.25}, "sizes": [8, 8]})
        run.log_metrics({"train/loss": 1.5, "not/defined": None}, step=3)
    stored = client.get_run(run.run_id)
    assert stored.info.status == "FINISHED"
    assert stored.data.params == {"loss.alpha": "0.25", "sizes": "[8, 8]"}
    assert stored.data.metrics == {"train/loss": 1.5}
    assert stored.data.tags["git_commit"] == "abc"


@pytest.mark.parametrize(
    ("error", "status"), [(RuntimeError, "FAILED"), (UserError, "FAILED"), (KeyboardInterrupt, "KILLED")]
)
def test_a_run_that_fails_is_not_finished(client, error, status):
    with pytest.raises(error), tracked_run(None, TAGS) as run:
        run.log_metrics({"train/loss": 1}, step=0)
        raise error("x")
    stored = client.get_run(run.run_id)
    assert stored.info.status == status
    assert stored.data.metrics == {"train/loss": 1}


SCRIPT = """
import time
from pipeline.errors import run_main
from pipeline.tracking import tracked_run
def main():
    with tracked_run(None, {}) as run:
        print(run.run_id, flush=True)
        time.sleep(60)
run_main(main)
"""


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGTERM, "KILLED"), (signal.SIGINT, "KILLED"), (signal.SIGKILL, "RUNNING")]
)
def test_signals(client, number, status):
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    run_id = process.stdout.readline().strip()
    started = time.monotonic()
    process.send_signal(number)
    _, errors = process.communicate(timeout=30)
    assert time.monotonic() - started < 20
    assert client.get_run(run_id).info.status == status
    assert "Traceback" not in errors
    # Whatever the first run was left as, the next one puts it right.
    with tracked_run(None, {}):
        pass
    assert client.get_run(run_id).info.status == ("FAILED" if status == "RUNNING" else status)


def test_runs_of_living_processes_and_other_machines_are_left_alone(client):
    with tracked_run(None, {}) as run:
        pass
    for tags in ({"pneumoflow.pid": str(os.getppid())}, {"pneumoflow.host": "elsewhere", "pneumoflow.pid": "1"}):
        client.update_run(run.run_id, status="RUNNING")
        for key, value in tags.items():
            client.set_tag(run.run_id, key, value)
        assert psutil.pid_exists(os.getppid())
        with tracked_run(None, {}):
            pass
        assert client.get_run(run.run_id).info.status == "RUNNING"


def test_a_resumed_run_has_each_step_once(client):
    with tracked_run(None, {}) as run:
        for step in range(4):
            run.log_metrics({"train/loss": step}, step)
    with tracked_run(run.run_id, {}) as again:
        for step in range(2, 6):
            again.log_metrics({"train/loss": step}, step)
    history = client.get_metric_history(run.run_id, "train/loss")
    assert sorted(metric.step for metric in history) == list(range(6))
    assert client.get_run(run.run_id).info.status == "FINISHED"


def test_a_run_of_another_store_gets_a_new_one(client, caplog):
    with tracked_run("0" * 32, {}) as run:
        pass
    assert run.run_id != "0" * 32
    assert "is not in" in caplog.text


def test_an_unusable_store_is_one_line(monkeypatch, tmp_path):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:////proc/nowhere/mlflow.db")
    with pytest.raises((UserError, OSError)), tracked_run(None, {}):
        pass


def test_where_a_run_is(monkeypatch):
    with tracked_run(None, {}) as run:
        pass
    assert run.run_id in run_place(run.run_id)
    assert "make ui" in run_place(run.run_id)
    with pytest.raises(UserError, match="no such model"):
        download_model(f"models:/{MODEL_NAME}@champion")
