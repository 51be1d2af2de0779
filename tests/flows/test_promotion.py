"""Champions come and go, in a project with a real registry."""

import json

import mlflow
import pandas as pd
import pytest

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
    report = (copy / "reports/report.html").read_text()
    assert f"champion (version {first})" in report

    (copy / "reports/registered.json").write_text('{"version": "99"}')
    done = call(copy, "pipeline.cli", "promote")
    assert done.returncode == 1
    assert f"version 99, but the challenger is {second}; run `dvc repro` first" in done.stderr
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

    # Split anew: the champion has seen most of the new test studies.
    params = (copy / "params.yaml").read_text()
    (copy / "params.yaml").write_text(params.replace("seed: 17", "seed: 18"))
    (copy / "data/splits.csv").unlink()
    assert call(copy, "dvc", "repro").returncode == 0
    against = json.loads((copy / "reports/comparison.json").read_text())
    table = pd.read_csv(copy / "data/splits.csv")
    assert 0 < against["seen"] <= (table["split"] == "test").sum()
    assert against["comparison"]["images"] == (table["split"] == "test").sum() - against["seen"]
