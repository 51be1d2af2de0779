"""The train stage, killed at any moment, gives what it would have given."""

import multiprocessing
import os
import random
import shutil
import signal
import time

import mlflow
import pytest
from safetensors.torch import load_file

from pipeline.params import Params
from pipeline.stages.preprocess import preprocess
from pipeline.stages.split import split
from pipeline.stages.train import train

KILLS = 20


def train_in(folder, params):
    """In a process of its own: the stage, as DVC would run it there."""
    os.chdir(folder)
    os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder}/mlflow.db"
    train(params)


@pytest.fixture
def processes():
    """Processes that start in no time: torch and MLflow are imported once, for all of them."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.stages.test_train_resume"])
    return context


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_killed_at_any_moment_it_ends_the_same(small_params, rsna, tmp_path, processes, precision):
    kills = KILLS if precision == "32-true" else KILLS // 4
    small_params["train"] |= {"epochs": 5, "batch_size": 4, "checkpoint_steps": 1, "precision": precision}
    params = Params.model_validate(small_params)
    preprocess(params)
    split(params)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for folder in (whole, killed):
        shutil.copytree(tmp_path / "data", folder / "data")
    process = processes.Process(target=train_in, args=(whole, params))
    process.start()
    process.join()
    assert process.exitcode == 0

    rng = random.Random(precision)
    for _ in range(kills):
        process = processes.Process(target=train_in, args=(killed, params))
        process.start()
        # At least one step further each time; most moments then lie within the writing of a checkpoint.
        before = newest(killed)
        while newest(killed) == before and process.is_alive():
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.3))
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert process.exitcode == -signal.SIGKILL, "the run was over before it was killed often enough"
    process = processes.Process(target=train_in, args=(killed, params))
    process.start()
    process.join()
    assert process.exitcode == 0

    weights, wanted = (load_file(folder / "models/model.safetensors") for folder in (killed, whole))
    assert all((weights[name] == value).all() for name, value in wanted.items())
    assert (killed / "models/model.json").read_text() == (whole / "models/model.json").read_text()
    one, other = (history(folder) for folder in (whole, killed))
    assert one == other
    assert [step for step, _ in one["train/loss"]] == list(range(len(one["train/loss"])))
    assert [step for step, _ in one["val/map"]] == [1, 2, 3, 4, 5]


def newest(folder):
    return max((path.name for path in folder.glob("checkpoints/*/step-*")), default="")


def history(folder):
    """Metric -> (step, value), of the folder's only run; without what the clock decides."""
    client = mlflow.MlflowClient(f"sqlite:///{folder}/mlflow.db")
    (run,) = client.search_runs([client.get_experiment_by_name("rsna-pneumonia").experiment_id])
    assert run.info.status == "FINISHED"
    timed = {"train/images_per_second", "train/data_wait_share"}
    return {
        key: sorted((metric.step, metric.value) for metric in client.get_metric_history(run.info.run_id, key))
        for key in run.data.metrics.keys() - timed
    }
