"""Promotion and rollback of champions in a project with a real model registry."""

import json
import re
import shutil
from pathlib import Path

import mlflow
import pandas as pd
import pytest

from flows.training import UNFINISHED

pytestmark = pytest.mark.slow


@pytest.fixture
def registry(trained):
    return mlflow.MlflowClient(f"sqlite:///{trained[0]}/mlflow.db")


def test_the_flow_makes_the_first_model_champion(trained, registry):
    version = registry.get_model_version_by_alias("rsna-retinanet", "champion")
    assert version.version == registry.get_model_version_by_alias("rsna-retinanet", "challenger").version
    assert version.tags["promotion"] == "promoted"
    assert version.tags["promotion_reasons"] == "the first model"
    decision = json.loads((trained[0] / "reports/promotion.json").read_text())
    assert (decision["promoted"], decision["champion"]) == (True, None)
    assert json.loads((trained[0] / "reports/comparison.json").read_text()) is None
    assert "version 1 is the champion" in trained[1].stdout + trained[1].stderr


def test_a_model_below_the_floor_does_not_become_the_first_champion(trained, tmp_path, edit, call):
    folder = Path(shutil.copytree(trained[0], tmp_path / "floor" / "project"))
    client = mlflow.MlflowClient(f"sqlite:///{folder}/mlflow.db")
    client.delete_registered_model_alias("rsna-retinanet", "champion")
    client.delete_registered_model_tag("rsna-retinanet", "champions")
    edit(folder, "promote", floor=0.99)
    done = call(folder, "pipeline.cli", "promote")
    assert done.returncode == 0, done.stderr
    assert "version 1 does not become champion; there is none" in done.stdout
    assert re.search(r"rsna_score: the interval begins at 0\.\d+, must be above promote.floor, 0.99", done.stdout)
    assert "champion" not in client.get_registered_model("rsna-retinanet").aliases
    edit(folder, "promote", floor=0.0)
    assert "version 1 is the champion" in call(folder, "pipeline.cli", "promote").stdout


@pytest.mark.long
def test_a_flow_that_was_killed_before_it_judged_the_model_is_finished_by_the_next(trained, tmp_path, call):
    folder = Path(shutil.copytree(trained[0], tmp_path / "killed" / "project"))
    client = mlflow.MlflowClient(f"sqlite:///{folder}/mlflow.db")
    client.delete_registered_model_alias("rsna-retinanet", "champion")
    client.delete_registered_model_tag("rsna-retinanet", "champions")
    assert not (folder / UNFINISHED).exists()
    (folder / UNFINISHED).write_text("the run that was killed")
    for _ in range(2):
        done = call(folder, "flows.training")
        assert done.returncode == 0, done.stdout + done.stderr
    assert "nothing to do" in done.stdout + done.stderr
    assert str(client.get_model_version_by_alias("rsna-retinanet", "champion").version) == "1"
    assert not (folder / UNFINISHED).exists()


@pytest.mark.long
def test_worse_models_by_hand_and_back(copy, edit, call):
    client = mlflow.MlflowClient(f"sqlite:///{copy}/mlflow.db")
    alias = lambda name: str(client.get_model_version_by_alias("rsna-retinanet", name).version)  # noqa: E731
    edit(copy, "train", lr=0.0011, epochs=1)
    assert call(copy, "flows.training").returncode == 0
    first = alias("champion")

    # A model that has learned nothing.
    edit(copy, "train", lr=1e-9)
    done = call(copy, "flows.training")
    assert done.returncode == 0, done.stdout + done.stderr
    second = alias("challenger")
    assert second != first == alias("champion")
    assert f"version {first} stays champion, not {second}" in done.stdout + done.stderr
    decision = json.loads((copy / "reports/promotion.json").read_text())
    assert "not surely better by more than 0" in decision["reasons"][0]
    assert client.get_model_version("rsna-retinanet", second).tags["promotion"] == "not promoted"
    against = json.loads((copy / "reports/comparison.json").read_text())
    assert (against["champion"], against["seen"]) == (first, 0)
    tags = client.get_model_version("rsna-retinanet", first).tags
    assert against["champion_weights_sha256"] == tags["pneumoflow.weights_sha256"]
    assert tags["pneumoflow.weights_sha256"] != decision["weights_sha256"]
    report = (copy / "reports/report.html").read_text()
    assert f"champion (version {first})" in report

    done = call(copy, "pipeline.cli", "promote", "--force", "a test")
    assert done.returncode == 0, done.stdout + done.stderr
    assert alias("champion") == second
    assert json.loads(client.get_registered_model("rsna-retinanet").tags["champions"])[-1]["why"] == "by hand: a test"
    again = call(copy, "pipeline.cli", "promote")
    assert "it was so before" in again.stdout
    done = call(copy, "pipeline.cli", "promote", "--rollback")
    assert f"version {first} is the champion again" in done.stdout
    assert alias("champion") == first
    assert "rolled back" in client.get_model_version("rsna-retinanet", second).tags["promotion_reasons"]
    done = call(copy, "pipeline.cli", "promote", "--rollback")
    assert done.returncode == 1
    assert "there is none to go back to" in done.stderr

    # After a new split, the champion has seen most of the new test studies.
    params = (copy / "params.yaml").read_text()
    (copy / "params.yaml").write_text(params.replace("seed: 17", "seed: 18"))
    (copy / "data/splits.csv").unlink()
    assert call(copy, "dvc", "repro").returncode == 0
    against = json.loads((copy / "reports/comparison.json").read_text())
    table = pd.read_csv(copy / "data/splits.csv")
    assert 0 < against["seen"] <= (table["split"] == "test").sum()
    assert against["comparison"]["images"] == (table["split"] == "test").sum() - against["seen"]


@pytest.mark.long
def test_params_edited_and_edited_back(copy, edit, call):
    """DVC restores the older model and its results; the model is compared anew, under its own version."""
    client = mlflow.MlflowClient(f"sqlite:///{copy}/mlflow.db")
    edit(copy, "train", lr=0.0011, epochs=1)
    assert call(copy, "flows.training").returncode == 0
    weights = (copy / "models/model.safetensors").read_bytes()
    edit(copy, "train", lr=0.0012)
    assert call(copy, "flows.training").returncode == 0
    assert (copy / "models/model.safetensors").read_bytes() != weights
    edit(copy, "train", lr=0.0011)
    done = call(copy, "flows.training")
    assert done.returncode == 0, done.stdout + done.stderr
    assert (copy / "models/model.safetensors").read_bytes() == weights
    decision = json.loads((copy / "reports/promotion.json").read_text())
    assert decision["challenger"] == json.loads((copy / "reports/registered.json").read_text())["version"]
    assert len(client.search_model_versions("name = 'rsna-retinanet'")) == 2


@pytest.mark.long
def test_a_store_that_does_not_have_the_model(copy, call):
    """Work as in a clone that pulled everything: its MLflow store is empty."""
    before = {path: path.read_bytes() for path in (copy / "reports").rglob("*") if path.is_file()}
    done = call(copy, "pipeline.cli", "promote")
    assert done.returncode == 1
    assert "`pneumoflow register` enters the model there" in done.stderr
    for _ in range(2):
        done = call(copy, "pipeline.cli", "register")
        assert done.returncode == 0, done.stderr
        assert "version 1 in sqlite:///mlflow.db" in done.stdout
    done = call(copy, "pipeline.cli", "promote")
    assert "version 1 is the champion" in done.stdout
    client = mlflow.MlflowClient(f"sqlite:///{copy}/mlflow.db")
    (version,) = client.search_model_versions("name = 'rsna-retinanet'")
    assert client.get_run(version.run_id).info.status == "FINISHED"
    assert "map_50" in version.description
    after = {path: path.read_bytes() for path in (copy / "reports").rglob("*") if path.is_file()}
    assert {path: after[path] for path in before if path.name != "promotion.json"} == {
        path: content for path, content in before.items() if path.name != "promotion.json"
    }
    (copy / "one").mkdir()
    study = next((copy / "data/rsna/stage_2_train_images").iterdir())
    done = call(copy, "pipeline.cli", "predict", "models:/rsna-retinanet@champion", str(study), "--out", "one")
    assert done.returncode == 0, done.stderr
