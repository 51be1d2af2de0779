"""A cross-validation in a real project: folds are trained once, shared by processes, and become one model."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
import yaml

from pipeline.assembly.inputs import read_inputs
from pipeline.data.splits import read_folds, read_splits
from pipeline.delivery.export import export_model
from pipeline.delivery.exported import load_export
from pipeline.delivery.model_file import load_model
from pipeline.detection.ensemble import Ensemble
from pipeline.errors import UserError
from pipeline.jobs.combine import combine
from pipeline.jobs.crossval import pipeline_of
from pipeline.params import Params
from pipeline.stages.preprocess import preprocess
from pipeline.stages.split import split
from pipeline.submission import read_submission
from tests.conftest import REPOSITORY, make_project, project_environment
from tests.waiting import wait_until

COMMAND = [sys.executable, "-m", "pipeline.cli", "crossval"]


@pytest.fixture(scope="session")
def crossed(tmp_path_factory, sample, _small_params):
    """Let two processes share a cross-validation of two folds; return the project's folder and their outputs.

    The second joins while the first trains a fold, which stands still until the second has begun the other fold.
    """
    folder = tmp_path_factory.mktemp("crossed") / "project"
    folder.mkdir()
    params = yaml.safe_load(yaml.safe_dump(_small_params))
    params["split"]["folds"] = 2
    params["train"]["epochs"] = 1
    make_project(folder, sample, params)
    environment = project_environment(folder, MLFLOW_TRACKING_URI=f"sqlite:///{folder}/mlflow.db", OMP_NUM_THREADS="1")
    logs = [folder.parent / f"{name}.log" for name in ("first", "second")]

    def start(log):
        with log.open("w") as file:
            return subprocess.Popen(
                COMMAND, cwd=folder, env=environment, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
            )

    first = start(logs[0])
    wait_until(lambda: "anchors reach" in logs[0].read_text(), 120, process=first)
    os.killpg(first.pid, signal.SIGSTOP)
    try:
        second = start(logs[1])
        wait_until(lambda: "Running stage 'crossval/dvc.yaml:fold1'" in logs[1].read_text(), 120, process=second)
    finally:
        os.killpg(first.pid, signal.SIGCONT)
    codes = [process.wait(280) for process in (second, first)]
    outputs = [log.read_text() for log in logs]
    assert codes == [0, 0], outputs
    return folder, outputs


def _runs(folder):
    client = mlflow.MlflowClient(f"sqlite:///{folder}/mlflow.db")
    return client.search_runs([one.experiment_id for one in client.search_experiments()])


@pytest.mark.slow
def test_each_fold_is_trained_once_by_one_of_the_processes(crossed):
    folder, outputs = crossed
    runs = _runs(folder)
    parent = json.loads((folder / "crossval/mlflow_run.json").read_text())["run_id"]
    children = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent]
    assert sorted(run.data.tags["fold"] for run in children) == ["0", "1"]
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert len(runs) == 3
    for output in outputs:
        assert "epoch 1/1" in output
        assert "failed to reproduce 'preprocess'" not in output  # the second did not wait for the first's fold
        assert "2 networks against one, on" in output
        assert "ms per image against" in output
    client = mlflow.MlflowClient(f"sqlite:///{folder}/mlflow.db")
    (version,) = client.search_model_versions("name='rsna-retinanet'")
    assert version.run_id == parent


@pytest.mark.slow
def test_each_study_outside_test_has_detections_of_the_network_that_did_not_see_it(crossed, monkeypatch):
    folder, _ = crossed
    monkeypatch.chdir(folder)
    params = Params.model_validate(yaml.safe_load(Path("params.yaml").read_text()))
    found = read_submission(Path("crossval/models/out_of_fold.csv"))
    parts = [read_inputs(params, fold=fold) for fold in (0, 1)]
    studies = {key for part in parts for key in part["val"].index["patientId"]}
    assert found.keys() == studies
    assert not studies & set(parts[0]["test"].index["patientId"])
    for fold, part in enumerate(parts):
        assert set(part["val"].index["patientId"]) <= set(parts[1 - fold]["train"].index["patientId"])
        alone = load_model(Path(f"crossval/fold{fold}"))[0].state_dict()
        together = load_model(Path("crossval/models"))[0].members[fold].state_dict()
        assert all((alone[name] == together[name]).all() for name in alone)
    metrics = json.loads(Path("crossval/reports/metrics.json").read_text())
    report = Path("crossval/reports/report.html").read_text()
    assert "Image scores" in report
    assert "Training losses" not in report  # they are in the MLflow runs of the folds
    assert metrics["val"]["images"] == len(studies)
    assert metrics["test"]["images"] == len(parts[0]["test"].index)


@pytest.mark.slow
def test_what_is_trained_is_not_trained_again_and_comes_back_from_the_cache(crossed):
    folder, _ = crossed
    before = {path: path.stat().st_mtime_ns for path in folder.glob("crossval/fold*/model.safetensors")}
    weights = (folder / "crossval/fold0/model.safetensors").read_bytes()
    shutil.rmtree(folder / "crossval/fold0")
    environment = project_environment(folder, MLFLOW_TRACKING_URI=f"sqlite:///{folder}/mlflow.db")
    done = subprocess.run(
        COMMAND, cwd=folder, env=environment, capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode == 0, done.stderr
    assert (folder / "crossval/fold0/model.safetensors").read_bytes() == weights
    assert len(_runs(folder)) == 3
    other = folder / "crossval/fold1/model.safetensors"
    assert other.stat().st_mtime_ns == before[other]
    assert "epoch" not in done.stderr


@pytest.mark.slow
def test_the_model_is_used_like_any_other(crossed, sample, run, tmp_path):
    folder, _ = crossed
    model = folder / "crossval/models"
    network, config = load_model(model)
    assert isinstance(network, Ensemble)
    assert config.ensemble.members == len(network.members) == 2
    assert config.ensemble.fusion_thresh is network.fusion_thresh is None
    done = run("pipeline.cli", "predict", model, sample, "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    table = pd.read_csv(next((tmp_path / "out").glob("*.csv")))
    assert len(table) == 60


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # warnings of the exporter
def test_its_export_is_one_graph_of_the_averaged_networks(crossed, tmp_path):
    folder, _ = crossed
    out = export_model(folder / "crossval/models", tmp_path / "out", "onnx")
    assert out.name == "model.onnx"
    assert sorted(path.name for path in out.parent.iterdir()) == ["check.json", "model.json", "model.onnx"]
    found = load_export(out)(np.full((3, 1, 128, 128), 90, np.uint8))
    assert [one.boxes.shape for one in found] == [(len(one.scores), 4) for one in found]
    assert len(found) == 3
    assert json.loads((out.parent / "check.json").read_text())["images"] == 4


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # warnings of the exporter
def test_boxes_are_fused_if_the_params_say_so_and_each_network_has_a_graph(crossed, tmp_path, monkeypatch):
    folder = Path(shutil.copytree(crossed[0], tmp_path / "copy", ignore=shutil.ignore_patterns(".dvc")))
    monkeypatch.chdir(folder)
    values = yaml.safe_load(Path("params.yaml").read_text())
    values["crossval"] = {"fusion": "boxes", "fusion_thresh": [0.45, 0.65]}
    config = combine(Params.model_validate(values))
    assert config.ensemble.fusion_thresh in (0.45, 0.65)
    assert load_model(Path("crossval/models"))[0].fusion_thresh == config.ensemble.fusion_thresh
    out = export_model(Path("crossval/models"), tmp_path / "out", "onnx")
    assert sorted(path.name for path in out.iterdir()) == ["check.json", "model-0.onnx", "model-1.onnx", "model.json"]
    found = load_export(out)(np.full((3, 1, 128, 128), 90, np.uint8))
    assert [one.boxes.shape for one in found] == [(len(one.scores), 4) for one in found]
    assert len(found) == 3
    with pytest.raises(UserError, match="boxes of several networks are fused, and Triton cannot do that"):
        export_model(Path("crossval/models"), tmp_path / "triton", "triton")


def test_its_stages_depend_on_what_those_of_a_single_model_do(monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    made = pipeline_of([0, 1, 2], "elsewhere")["stages"]
    train = yaml.safe_load(Path("dvc.yaml").read_text())["stages"]["train"]
    assert list(made) == ["fold0", "fold1", "fold2", "combine", "evaluate"]
    for fold in range(3):
        stage = made[f"fold{fold}"]
        assert (stage["deps"], stage["params"]) == (train["deps"], train["params"])
        assert set(stage["outs"]) & set(made["combine"]["deps"]) >= {f"crossval/fold{fold}/model.safetensors"}


def test_folds_are_needed(small_params, rsna, write_params, run, one_line_error, tmp_path):
    write_params(small_params)
    one_line_error(run("pipeline.cli", "crossval", cwd=tmp_path), "split.folds = 0", "at least 2")
    params = Params.model_validate(small_params)
    preprocess(params)
    split(params)
    index = pd.read_csv("data/prepared/index.csv", dtype=str)
    assert read_folds(Path("data/splits.csv")) == []
    with pytest.raises(UserError, match="data/splits.csv: has no fold 0; set split.folds"):
        read_splits(Path("data/splits.csv"), index, 0)


def test_anchors_that_are_fitted_to_each_fold_are_refused(small_params, write_params, run, one_line_error, tmp_path):
    small_params["split"]["folds"], small_params["model"]["anchors"] = 2, "fit"
    write_params(small_params)
    one_line_error(run("pipeline.cli", "crossval", cwd=tmp_path), "model.anchors = 'fit'", "share their anchors")
