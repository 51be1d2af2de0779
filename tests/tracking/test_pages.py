"""Texts and addresses of MLflow's pages."""

import json

import mlflow
from hypothesis import given
from hypothesis import strategies as st

from pipeline.tracking import MODEL_NAME, tracked_run
from pipeline.tracking.pages import (
    ABOUT,
    CHAMPIONS,
    DECISION,
    VIEW_TAG,
    renewed,
    run_name,
    with_champions,
    with_decision,
)
from pipeline.tracking.registry import require_registry
from pipeline.tracking.store import pages_of

RUN = "3f2a9c" + "0" * 26


def test_names_tell_what_differs():
    assert run_name("resnet18 256px focal", None, RUN) == "resnet18 256px focal · 3f2a9c"
    assert run_name("x", [], RUN) == "same params · 3f2a9c"
    assert run_name("x", [("train.lr", "0.0007"), ("loss.gamma", "1.5")], RUN) == "lr 0.0007, gamma 1.5 · 3f2a9c"
    both = [("train.workers", "1"), ("preprocess.workers", "2")]
    assert run_name("x", both, RUN) == "train.workers 1, preprocess.workers 2 · 3f2a9c"
    many = [(f"train.p{number}", "1" * 99) for number in range(5)]
    assert run_name("x", many, RUN) == f"p0 {'1' * 24}, p1 {'1' * 24}, p2 {'1' * 24}, +2 · 3f2a9c"


def name_of(params, parent=None):
    with tracked_run(None, {"mlflow.parentRunId": parent} if parent else {}) as run:
        run.log_params(params)
        run.name_by_changes("resnet18")
    found = mlflow.MlflowClient().get_run(run.run_id)
    return found.info.run_name.removesuffix(f" · {run.run_id[:6]}"), run.run_id


def test_a_run_is_compared_with_the_one_before(client):
    first, run_id = name_of({"seed": 1, "train": {"lr": 0.1}})
    assert first == "resnet18"
    assert name_of({"seed": 9}, parent=run_id)[0] == "seed 9"
    assert name_of({"seed": 1, "train": {"lr": 0.2}})[0] == "lr 0.2"
    assert name_of({"seed": 1, "train": {"lr": 0.2}})[0] == "same params"


def test_final_numbers_intervals_and_columns(client):
    with tracked_run(None, {}) as run:
        run.log_table({"metric": ["auroc", "map"], "test": [0.9, ""]}, "intervals.json")
    with tracked_run(run.run_id, {}) as run:  # evaluated again
        run.log_table({"metric": ["map"], "test": [0.5]}, "intervals.json")
    tag = json.loads(client.get_run(run.run_id).data.tags["mlflow.loggedArtifacts"])
    assert tag == [{"path": "intervals.json", "type": "table"}]
    assert mlflow.artifacts.load_dict(f"runs:/{run.run_id}/intervals.json") == {
        "columns": ["metric", "test"],
        "data": [["map", 0.5]],
    }
    runs, own = pages_of("http://127.0.0.1:5000", run.run_id)
    experiment = client.get_run(run.run_id).info.experiment_id
    assert own == f"http://127.0.0.1:5000/#/experiments/{experiment}/runs/{run.run_id}?workflowType=machine_learning"
    assert "viewStateShareKey=headline" in runs
    client.delete_experiment_tag(experiment, VIEW_TAG)
    assert len(pages_of("http://127.0.0.1:5000", "0" * 32)) == 1
    columns = json.loads(client.get_experiment(experiment).tags[VIEW_TAG])["selectedColumns"]
    assert "metrics.`test/rsna_score`" in columns


def test_the_text_of_a_model_keeps_its_champions(client):
    require_registry()
    client.update_registered_model(MODEL_NAME, with_champions("of an older version", [champion("1", "first | one")]))
    require_registry()
    text = client.get_registered_model(MODEL_NAME).description
    assert text.startswith(ABOUT)
    assert text.endswith("| 1 | 2026-01-01 09:30 UTC | first \\| one |")


def champion(version, why):
    return {"version": version, "at": "2026-01-01T09:30:15+00:00", "why": why}


@given(st.text(), st.text())
def test_sections_replace_only_themselves(text, why):
    decided = with_decision(text, "promoted", why)
    again = with_decision(decided, "not promoted", "worse")
    assert again == text.partition(DECISION)[0] + DECISION + "not promoted: worse"
    assert renewed("new", decided, DECISION).endswith(decided.partition(DECISION)[2])
    assert renewed("new", "without a section", DECISION) == "new"
    table = with_champions(text, [champion("1", why), champion("2", why)]).partition(CHAMPIONS)[2]
    assert len(table.split("\n")) == 4
    assert table.split("\n")[2].startswith("| 2 |")
