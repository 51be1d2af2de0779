"""The training flow and its stages as users run them: real DVC, real Prefect, real MLflow, real signals."""

import json
import shutil
import signal
import subprocess
import sys
import time

import mlflow
import pandas as pd
import psutil
import pytest
import yaml
from filelock import FileLock

from pipeline.sources.sample import make_sample
from tests.conftest import project_environment
from tests.flows.terminal import started_training
from tests.waiting import wait_until

pytestmark = pytest.mark.slow


def error_of(done):
    """Return the one error line with which a run on bad input must end."""
    assert done.returncode == 1, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    return line


def ran(done):
    """Return the stages that a `dvc repro` ran."""
    assert done.returncode == 0, done.stdout + done.stderr
    return [line.split("'")[1] for line in done.stdout.splitlines() if line.startswith("Running stage")]


def test_what_the_flow_prints(trained):
    folder, done = trained
    lines = done.stdout.splitlines()
    assert any(line.startswith("Test split: ") for line in lines)
    metrics = json.loads((folder / "reports/metrics.json").read_text())["test"]
    assert any(line.split()[:2] == ["map_50", f"{metrics['map_50']:.3f}"] for line in lines)
    run_id = json.loads((folder / "models/mlflow_run.json").read_text())["run_id"]
    assert any(line.startswith("MLflow: ") and run_id in line for line in lines)
    assert f"Report: {folder / 'reports/report.html'}" in lines
    assert "epoch 2/2" in done.stdout + done.stderr


def test_what_the_flow_leaves(trained):
    folder, _ = trained
    for name in (
        "models/model.safetensors", "models/model.json", "reports/predictions.csv", "reports/report.html",
        "reports/plots/examples.jpg", "reports/plots/froc.png", "data/splits.csv", "dvc.lock",
    ):  # fmt: skip
        assert (folder / name).stat().st_size > 0, name
    assert len(list((folder / "checkpoints").glob("*/ended"))) == 1
    groups = pd.read_csv(folder / "data/prepared/index.csv").merge(pd.read_csv(folder / "data/splits.csv"))
    assert groups.groupby("groupId")["split"].nunique().max() == 1
    assert set(groups["split"]) == {"train", "val", "test"}


def test_what_mlflow_knows(trained):
    folder, _ = trained
    client = mlflow.MlflowClient(f"sqlite:///{folder}/mlflow.db")
    run_id = json.loads((folder / "models/mlflow_run.json").read_text())["run_id"]
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params["loss.alpha"] == "0.25"
    assert run.data.params["preprocess.clahe.clip_limit"] == "2.0"
    keys = {
        "train/loss", "train/loss_classification", "train/loss_box", "train/lr", "train/images_per_second",
        "val/rsna_score", "val/map", "val/map_50", "test/rsna_score", "test/map", "test/map_50", "test/auroc",
    }  # fmt: skip
    assert keys <= run.data.metrics.keys()
    steps = [metric.step for metric in client.get_metric_history(run_id, "train/loss")]
    assert steps == list(range(len(steps)))
    assert [metric.step for metric in client.get_metric_history(run_id, "val/map")] == [1, 2]
    # MLflow draws metrics that have step 0 only as bars.
    for name in ("test/map", "val/operating_threshold"):
        assert [metric.step for metric in client.get_metric_history(run_id, name)] == [0]
    assert not [name for name in run.data.metrics if name.endswith(("_low", "_high"))]
    assert run.info.run_name == f"resnet10t 128px focal · {run_id[:6]}"
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=folder, capture_output=True, text=True).stdout.strip()
    tags = run.data.tags
    assert tags["git_commit"] == head
    assert tags["git_dirty"] == "false"
    assert tags["dvc.data/rsna"] == yaml.safe_load((folder / "data/rsna.dvc").read_text())["outs"][0]["md5"]
    assert len(tags["prefect_flow_run_id"]) == 36
    assert {item.dataset.name for item in run.inputs.dataset_inputs} == {"rsna train", "rsna val", "rsna test"}
    artifacts = {item.path for item in client.list_artifacts(run_id)}
    assert {"metrics.json", "predictions.csv", "report.html", "plots"} <= artifacts
    table = mlflow.artifacts.load_dict(f"{run.info.artifact_uri}/metrics_with_intervals.json")
    test = json.loads((folder / "reports/metrics.json").read_text())["test"]
    row = dict(zip(table["columns"], table["data"][[row[0] for row in table["data"]].index("map_50")], strict=True))
    assert (row["test"], row["test low"]) == (round(test["map_50"], 4), round(test["map_50_low"], 4))
    version = client.get_model_version_by_alias("rsna-retinanet", "challenger")
    assert version.run_id == run_id
    for text in (version.description, tags["mlflow.note.content"]):
        assert f"map_50 {run.data.metrics['test/map_50']:.3f}" in text
    assert len(client.search_runs(["1"])) == 1


def test_unchanged_data_are_nothing_to_do(trained, call):
    folder, _ = trained
    started = time.monotonic()
    done = call(folder, "dvc", "repro")
    assert time.monotonic() - started < 10
    assert ran(done) == []
    assert "Data and pipelines are up to date." in done.stdout
    before = (folder / "mlflow.db").read_bytes()
    again = call(folder, "flows.training")
    assert again.returncode == 0, again.stderr
    assert "nothing to do" in again.stdout + again.stderr
    assert (folder / "mlflow.db").read_bytes() == before


def test_dvc_shows_metrics_and_plots(trained, call):
    shown = call(trained[0], "dvc", "metrics", "show")
    assert max(map(len, shown.stdout.splitlines())) <= 80
    test = json.loads((trained[0] / "reports/metrics.json").read_text())["test"]
    headline = json.loads((trained[0] / "reports/headline.json").read_text())
    assert headline == {key: test[key] for key in ("rsna_score", "map", "map_50", "auroc")}
    assert shown.stdout.split()[:6] == ["Path", "auroc", "map", "map_50", "rsna_score", "reports/headline.json"]
    plots = call(trained[0], "dvc", "plots", "show", "--out", "../dvc_plots")
    assert plots.returncode == 0, plots.stderr
    assert "Precision and recall" in (trained[0].parent / "dvc_plots/index.html").read_text()


@pytest.mark.long
def test_only_what_depends_on_an_edit_runs(copy, edit, call):
    git = ["git", "-c", "user.name=test", "-c", "user.email=test@localhost"]
    subprocess.run([*git, "add", "dvc.lock", "reports/headline.json"], cwd=copy, check=True)
    subprocess.run([*git, "commit", "-qm", "first model"], cwd=copy, check=True)
    before = json.loads((copy / "reports/headline.json").read_text())["map"]
    edit(copy, "train", lr=0.0007)
    assert ran(call(copy, "dvc", "repro")) == ["train", "evaluate"]
    compared = json.loads(call(copy, "dvc", "metrics", "diff", "--json").stdout)
    assert compared["reports/headline.json"]["map"]["old"] == before
    params = yaml.safe_load((copy / "params.yaml").read_text())
    edit(copy, "preprocess", clahe=params["preprocess"]["clahe"] | {"clip_limit": 3.0})
    # The split depends on the list of studies, not on their pixels.
    assert ran(call(copy, "dvc", "repro")) == ["preprocess", "train", "evaluate"]
    run_id = json.loads((copy / "models/mlflow_run.json").read_text())["run_id"]
    client = mlflow.MlflowClient(f"sqlite:///{copy}/mlflow.db")
    assert client.get_run(run_id).data.params["train.lr"] == "0.0007"
    assert "prefect_flow_run_id" not in client.get_run(run_id).data.tags


@pytest.mark.long
def test_own_data(copy, call):
    shutil.rmtree(copy / "data/rsna")
    make_sample(copy / "data/rsna", studies=50, size=160, seed=9, opacity_fraction=0.5, labels=None, workers=1)
    done = call(copy, "flows.training")
    assert "dvc add data/rsna" in error_of(done)
    assert (copy / "data/rsna/stage_2_train_labels.csv").exists()
    assert call(copy, "dvc", "add", "data/rsna").returncode == 0
    assert ran(call(copy, "dvc", "repro")) == ["preprocess", "split", "train", "evaluate"]
    assert len(pd.read_csv(copy / "data/prepared/index.csv")) == 50


@pytest.mark.long
def test_no_remote_is_one_line_and_no_harm(copy, call):
    shutil.rmtree(copy / "data/rsna")
    shutil.rmtree(copy / ".dvc/cache")
    shutil.rmtree(copy.parent / "remote")
    before = (copy / "models/model.safetensors").read_bytes()
    done = call(copy, "flows.training")
    assert error_of(done).startswith("error: dvc pull data/rsna.dvc (exit code ")
    assert (done.stdout + done.stderr).count("Retry ") == 5
    assert (copy / "models/model.safetensors").read_bytes() == before


def test_a_stages_own_reason_reaches_the_user(copy, edit, call):
    edit(copy, "loss", alpha=0.3)
    (copy / "data/prepared/boxes.csv").unlink()
    shutil.rmtree(copy / "models")
    (copy / "models").write_text("in the way")
    done = call(copy, "flows.training")
    assert "models" in error_of(done)


def test_never_two_at_once(copy, call):
    with FileLock(copy / ".pneumoflow.lock"):
        done = call(copy, "flows.training")
    assert error_of(done).startswith("error: .pneumoflow.lock: another training run holds it")


def start(folder, tmp_path, server):
    """Start the flow and wait for its first checkpoint; return (process, all its descendants)."""
    log = (tmp_path / "flow.log").open("w")
    process = subprocess.Popen(
        [sys.executable, "-m", "flows.training"],
        cwd=folder,
        env=project_environment(folder, PREFECT_API_URL=server),
        stdout=log,
        stderr=log,
    )
    wait_until(lambda: started_training(folder), 120, process=process)
    return process, psutil.Process(process.pid).children(recursive=True)


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_nothing_survives_a_signal_and_the_run_goes_on(copy, edit, tmp_path, number, call, prefect_server):
    edit(copy, "train", epochs=8)
    process, family = start(copy, tmp_path, prefect_server)
    names = [" ".join(member.cmdline()) for member in family]
    assert any("dvc" in name for name in names)
    assert any("pipeline.stages.train" in name for name in names)
    process.send_signal(number)
    assert process.wait(20) != 0
    _, alive = psutil.wait_procs(family, timeout=5)
    assert alive == []
    assert "Traceback" not in (tmp_path / "flow.log").read_text()
    client = mlflow.MlflowClient(f"sqlite:///{copy}/mlflow.db")
    (run,) = client.search_runs(["1"])
    assert run.info.status == "KILLED"
    if number == signal.SIGINT:
        return
    done = call(copy, "flows.training")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "continuing with step" in done.stdout + done.stderr
    (run,) = client.search_runs(["1"])
    assert run.info.status == "FINISHED"
    steps = [metric.step for metric in client.get_metric_history(run.info.run_id, "train/loss")]
    assert sorted(steps) == list(range(len(steps)))
    assert [metric.step for metric in client.get_metric_history(run.info.run_id, "val/map")] == list(range(1, 9))
    assert len(list((copy / "checkpoints").glob("*/ended"))) == 1
