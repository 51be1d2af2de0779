"""A new store exists whole or not at all, whichever process makes it and whatever kills that process."""

import os
import signal
import subprocess
import sys

import mlflow
import pytest

from pipeline.tracking.database import make_database
from tests.conftest import REPOSITORY
from tests.waiting import wait_until

_OPEN = "from pipeline.tracking import open_client, open_experiment; print(open_experiment(open_client()))"


def start(tmp_path):
    return subprocess.Popen(
        [sys.executable, "-c", _OPEN],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/new.db"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
def test_processes_that_make_it_at_once(tmp_path):
    started = [start(tmp_path) for _ in range(3)]
    for process in started:
        out, error = process.communicate(timeout=200)
        assert (process.returncode, out) == (0, "1\n"), error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mlflow.db", "new.db"]


@pytest.mark.slow
def test_a_kill_while_it_is_made(tmp_path):
    killed = start(tmp_path)
    wait_until(lambda: any(path.stat().st_size > 0 for path in tmp_path.glob(".pneumoflow-*/new.db")), pause=0.005)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert not (tmp_path / "new.db").exists()
    out, error = start(tmp_path).communicate(timeout=200)
    assert out == "1\n", error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mlflow.db", "new.db"]


def test_one_that_is_there_stays(mlflow_store):
    client = mlflow.MlflowClient(f"sqlite:///{mlflow_store}")
    client.create_experiment("mine")
    make_database(f"sqlite:///{mlflow_store}")
    assert client.get_experiment_by_name("mine") is not None
