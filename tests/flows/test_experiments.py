"""`dvc exp run`, as the README shows it."""

import subprocess
import sys
import time

import mlflow
import pytest

from tests.conftest import project_environment

pytestmark = pytest.mark.long


@pytest.fixture
def dvc(copy):
    """Run a dvc command in a project whose MLflow runs go to one store, in whichever folder they run."""
    store = f"sqlite:///{copy}/mlflow.db"
    environment = project_environment(copy, MLFLOW_TRACKING_URI=store)

    def call(*arguments):
        command = [sys.executable, "-m", "dvc", *arguments]
        done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, timeout=280)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    yield call
    subprocess.run([sys.executable, "-m", "dvc", "queue", "stop", "--kill"], cwd=copy, env=environment, check=True)


def values(copy, key):
    runs = mlflow.MlflowClient(f"sqlite:///{copy}/mlflow.db").search_runs(["1"])
    assert {run.info.status for run in runs} == {"FINISHED"}
    return sorted(run.data.params[key] for run in runs)


def test_each_experiment_is_a_run_of_its_own(copy, dvc):
    dvc("exp", "run", "-S", "train.epochs=1", "-S", "train.lr=0.002")
    assert values(copy, "train.lr") == ["0.002"]
    dvc("exp", "run", "--queue", "-S", "train.epochs=1", "-S", "loss.gamma=1.5")
    dvc("queue", "start", "--jobs", "1")
    deadline = time.monotonic() + 240
    while (status := dvc("queue", "status")).count("Success") < 1:
        assert "Failed" not in status
        assert time.monotonic() < deadline
        time.sleep(2)
    assert values(copy, "loss.gamma") == ["1.5", "2.0"]
