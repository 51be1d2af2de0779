"""A search over params, by processes that start and end at different times."""

import os
import signal
import subprocess
import sys

import mlflow
import optuna
import pandas as pd
import pytest

from pipeline.errors import UserError
from pipeline.jobs.sweep import suggest, sweep
from pipeline.params import Params, load_params
from pipeline.stages.preprocess import preprocess
from pipeline.stages.split import split
from tests.waiting import wait_until


def test_a_trial_is_the_params_with_other_values(small_params):
    base = Params.model_validate(small_params)
    values = {
        "train.lr": 0.001, "train.weight_decay": 0.01, "loss.gamma": 3.0, "loss.alpha": 0.5, "loss.box": "giou",
    }  # fmt: skip
    params = suggest(optuna.trial.FixedTrial(values), base)
    assert (params.train.lr, params.loss.gamma, params.loss.box) == (0.001, 3.0, "giou")
    assert params.train.epochs == base.sweep.epochs
    assert params.preprocess == base.preprocess


@pytest.mark.parametrize(
    ("space", "rule"),
    [
        ({"loss.gama": {"low": 1.0, "high": 2.0, "log": False}}, "loss.gama is no key of this file"),
        ({"loss": {"choices": [1, 2]}}, "loss is no key of this file"),
        ({"preprocess.image_size": {"choices": [128, 256]}}, "must be a key of model, loss, augment or train"),
        ({"train.lr": {"low": 0.1, "high": 0.01, "log": True}}, "low must be below high"),
        ({}, "at least 1 item"),
    ],
)
def test_a_space_that_is_none(small_params, space, rule):
    small_params["sweep"]["space"] = space
    with pytest.raises(ValueError, match=rule):
        Params.model_validate(small_params)


@pytest.mark.slow
def test_trials_that_all_fail(small_params, rsna, tmp_path):
    small_params["train"] |= {"max_bad_steps": 1, "warmup_epochs": 0.0}
    small_params["sweep"] |= {"trials": 6, "epochs": 2, "space": {"train.lr": {"choices": [1e30, 1e35]}}}
    params = Params.model_validate(small_params)
    preprocess(params)
    split(params)
    with pytest.raises(UserError, match="sweep: 3 trials in a row failed"):
        sweep(params, tmp_path / "sweep", None)
    runs = mlflow.MlflowClient().search_runs(["1"])
    assert [run.info.status for run in runs] == ["FAILED"] * 4


@pytest.mark.long
def test_two_processes_one_of_which_is_killed(small_params, rsna, tmp_path, write_params, repository):
    small_params["sweep"] |= {"trials": 6, "epochs": 2}
    small_params["sweep"]["space"] = {
        "train.lr": {"low": 1e-4, "high": 1e-2, "log": True}, "loss.gamma": {"choices": [1.0, 2.0]},
    }  # fmt: skip
    write_params(small_params)
    params = Params.model_validate(small_params)
    preprocess(params)
    split(params)
    store = f"sqlite:///{tmp_path}/mlflow.db"
    environment = {**os.environ, "PYTHONPATH": str(repository), "MLFLOW_TRACKING_URI": store}
    command = [sys.executable, "-m", "pipeline.cli", "sweep"]
    # The first process creates the databases; from then on, both processes share them.
    first = subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True)
    wait_until(lambda: list((tmp_path / "sweep").glob("checkpoints/*/step-*")), 100, process=first)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    second = subprocess.Popen(command, cwd=tmp_path, env=environment, **pipes)
    client = mlflow.MlflowClient(store)
    wait_until(lambda: len(running_trials(client)) == 2, 100, process=second)
    first.send_signal(signal.SIGKILL)
    first.wait()
    out, errors = second.communicate(timeout=200)
    assert second.returncode == 0, errors
    assert "sweep/best.yaml" in out
    trials = pd.read_csv(tmp_path / "sweep/trials.csv")
    done = trials[trials["state"].isin(["COMPLETE", "PRUNED"])]
    assert len(done) >= 6
    best = load_params(tmp_path / "sweep/best.yaml")
    top = trials.loc[trials[trials["state"] == "COMPLETE"]["value"].idxmax()]
    assert best.train.lr == pytest.approx(top["params_train.lr"])
    assert best.train.epochs == params.train.epochs
    for run_id in done["user_attrs_run_id"]:
        assert client.get_run(run_id).info.status == "FINISHED"
    (group,) = client.search_runs(["1"], "tags.`mlflow.runName` LIKE 'sweep %'")
    assert group.info.status == "FINISHED"
    assert group.data.metrics["val/map"] == pytest.approx(top["value"])
    assert {"best.yaml", "trials.csv"} <= {file.path for file in client.list_artifacts(group.info.run_id)}
    children = client.search_runs(["1"], f"tags.`mlflow.parentRunId` = '{group.info.run_id}'")
    assert {run.info.run_id for run in children} >= set(done["user_attrs_run_id"])
    # Another process finds no trial left to run.
    again = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=100)
    assert again.returncode == 0, again.stderr
    assert len(pd.read_csv(tmp_path / "sweep/trials.csv")) == len(trials)


def running_trials(client):
    return [run for run in client.search_runs(["1"], "status = 'RUNNING'") if "mlflow.parentRunId" in run.data.tags]
