import json
import math

import mlflow
import pandas as pd
import pytest

from pipeline.jobs.ablate import ablate, arms, loss_curves
from pipeline.params import Params
from pipeline.stages.preprocess import preprocess
from pipeline.stages.split import split


def test_the_arms_are_the_papers(small_params):
    base = Params.model_validate(small_params)
    found = {table: [arm for arm in arms(base) if arm.table == table] for table in "abd"}
    assert [arm.paper_ap for arm in found["a"]] == [0.0, 10.8, 30.2, 31.1, 30.8, 28.7, 25.1]
    assert [arm.params(base, None).loss.alpha for arm in found["a"]] == [0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 0.999]
    assert {arm.params(base, None).loss.classification for arm in found["a"]} == {"balanced_cross_entropy"}
    gammas = [arm.params(base, None).loss for arm in found["b"]]
    assert [(loss.gamma, loss.alpha) for loss in gammas] == [
        (0, 0.75), (0.1, 0.75), (0.2, 0.75), (0.5, 0.5), (1, 0.25), (2, 0.25), (5, 0.25),
    ]  # fmt: skip
    assert [arm.params(base, 3).loss.sampling for arm in found["d"]] == ["ohem", "all"]
    assert found["d"][0].params(base, 3).train.epochs == 3


def test_an_unknown_table(run, tmp_path, one_line_error):
    one_line_error(run("pipeline.cli", "ablate", "--tables", "a,z", cwd=tmp_path), "'z'", "a, b, d, clahe, matching")


def test_loss_curves_are_the_formula():
    for row in loss_curves().to_dict("records"):
        for gamma in (0.0, 0.5, 1.0, 2.0, 5.0):
            wanted = -((1 - row["p_t"]) ** gamma) * math.log(row["p_t"])
            assert row[f"gamma {gamma:g}"] == pytest.approx(wanted, rel=1e-6)


@pytest.mark.slow
def test_child_runs_of_one_run_and_what_is_done_is_not_done_again(small_params, rsna, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    base = Params.model_validate(small_params)
    preprocess(base)
    split(base)
    out = tmp_path / "ablation"
    ablate(base, out, ["d"], epochs=1)
    first = json.loads((out / "results.json").read_text())
    with caplog.at_level("INFO"):
        table = pd.read_csv(ablate(base, out, ["d", "clahe"], epochs=1))
    # The arms "FL" and "with CLAHE" are the same run.
    assert caplog.text.count("done before") == 3
    assert table["arm"].tolist() == ["CE with OHEM 1:3", "FL", "without CLAHE", "with CLAHE"]
    assert table["paper_ap"].tolist()[:2] == [32.8, 36.0]
    second = json.loads((out / "results.json").read_text())
    assert len(first["arms"]) == 2
    assert len(second["arms"]) == 3
    assert first["run_id"] == second["run_id"]
    client = mlflow.MlflowClient()
    children = client.search_runs(["1"], f"tags.`mlflow.parentRunId` = '{first['run_id']}'")
    assert len(children) == 3
    assert {child.info.status for child in children} == {"FINISHED"}
    clip_limits = {child.data.params["preprocess.clahe.clip_limit"] for child in children}
    assert clip_limits == {"0.0", "2.0"}
    assert {item.path for item in client.list_artifacts(first["run_id"])} >= {"table.csv", "ablation.png"}
    for child in children:
        arm = next(arm for arm in second["arms"].values() if arm["run_id"] == child.info.run_id)
        assert child.data.metrics["val/map"] == pytest.approx(arm["map"])
