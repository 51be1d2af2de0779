"""The train stage in two processes that share each step, over gloo."""

import os
import shutil
import signal
import subprocess
import sys

import mlflow
import psutil
import pytest
import torch
from safetensors.torch import load_file

from pipeline.params import Params
from pipeline.stages.preprocess import preprocess
from pipeline.stages.split import split
from tests.waiting import wait_until

STAGE = ["-m", "pipeline.stages.train"]


@pytest.fixture
def start(small_params, rsna, write_params, repository, tmp_path):
    """Return a function that starts the stage in its own folder: ``start("name", [python arguments], epochs=...)``."""
    # SGD, because an adaptive optimizer enlarges the differences between gradients that are nearly zero.
    small_params["train"] |= {"optimizer": "sgd", "lr": 0.01, "epochs": 2, "batch_size": 2, "checkpoint_steps": 2}
    preprocess(Params.model_validate(small_params))
    split(Params.model_validate(small_params))

    def call(name, arguments=STAGE, **changes):
        folder = tmp_path / name
        shutil.copytree(tmp_path / "data", folder / "data")
        write_params({**small_params, "train": small_params["train"] | changes}, folder / "params.yaml")
        environment = {
            **os.environ, "PYTHONPATH": str(repository), "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db",
        }  # fmt: skip
        return subprocess.Popen(
            [sys.executable, *arguments], cwd=folder, env=environment, stderr=subprocess.PIPE, text=True
        )

    return call


def finish(process):
    _, errors = process.communicate(timeout=200)
    assert process.returncode == 0, errors
    return errors


def history(folder):
    client = mlflow.MlflowClient(f"sqlite:///{folder}/mlflow.db")
    (run,) = client.search_runs([client.get_experiment_by_name("rsna-pneumonia").experiment_id])
    assert run.info.status == "FINISHED"
    return {
        key: sorted((metric.step, metric.value) for metric in client.get_metric_history(run.info.run_id, key))
        for key in ("train/loss", "train/loss_box", "train/gradient_norm", "train/positives_per_image", "val/map")
    }


def assert_same(one, other):
    weights, wanted = (load_file(folder / "models/model.safetensors") for folder in (one, other))
    for name, value in wanted.items():
        torch.testing.assert_close(weights[name], value, rtol=1e-5, atol=1e-5)
    found, expected = history(one), history(other)
    for key, steps in expected.items():
        assert [step for step, _ in found[key]] == [step for step, _ in steps]
        assert [value for _, value in found[key]] == pytest.approx([value for _, value in steps], rel=1e-4, abs=1e-6)


@pytest.mark.long
def test_two_processes_equal_one_with_batches_twice_as_large(start, tmp_path):
    """With 37 images, the second process has none in the last step; the 12 images of val are divided too."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", *STAGE]
    errors = finish(start("two", torchrun))
    assert errors.count("epoch 2/2") == 1  # one process logs for both
    finish(start("one", batch_size=4))
    assert_same(tmp_path / "two", tmp_path / "one")


def processes_of(folder, main, count):
    """Return the processes of a run by rank, once its first checkpoint exists."""
    wait_until(lambda: list(folder.glob("checkpoints/*/step-*")), 120, process=main)
    ranks = [one for one in psutil.Process(main.pid).children() if "pipeline.stages.train" in one.cmdline()]
    assert len(ranks) == count
    return sorted(ranks, key=lambda one: int(one.environ()["RANK"]))


@pytest.mark.long
def test_a_killed_process_ends_the_others_and_a_restart_goes_on(start, tmp_path):
    main = start("killed", devices=2, epochs=6)
    ranks = processes_of(tmp_path / "killed", main, 2)
    family = psutil.Process(main.pid).children(recursive=True)
    ranks[1].send_signal(signal.SIGKILL)
    _, errors = main.communicate(timeout=30)
    assert main.returncode == 1
    assert [line for line in errors.splitlines() if line.startswith("error: ")] == [
        "error: process 1 of 2 was ended by signal 9"
    ], errors
    assert psutil.wait_procs(family, timeout=5)[1] == []

    main = start("restarted", devices=2, epochs=6, restarts=1)
    processes_of(tmp_path / "restarted", main, 2)[1].send_signal(signal.SIGKILL)
    assert "continuing with step" in finish(main)
    finish(start("whole", devices=2, epochs=6))
    assert_same(tmp_path / "restarted", tmp_path / "whole")


@pytest.mark.long
def test_a_signal_ends_all_of_them_with_a_checkpoint(start, tmp_path):
    main = start("asked", devices=2, epochs=20)
    processes_of(tmp_path / "asked", main, 2)
    family = psutil.Process(main.pid).children(recursive=True)
    main.send_signal(signal.SIGTERM)
    _, errors = main.communicate(timeout=20)
    assert main.returncode == 130, errors
    assert psutil.wait_procs(family, timeout=5)[1] == []
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/asked/mlflow.db")
    (run,) = client.search_runs([client.get_experiment_by_name("rsna-pneumonia").experiment_id])
    assert run.info.status == "KILLED"
