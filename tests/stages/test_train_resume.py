"""The train stage, killed at any moment and started again, gives the same result as without a kill."""

import json
import shutil

import mlflow
import pytest
from safetensors.torch import load_file

from pipeline.params import Params
from pipeline.stages.preprocess import preprocess
from pipeline.stages.split import split


@pytest.mark.long
@pytest.mark.parametrize(("precision", "kills"), [("32-true", 20), ("bf16-mixed", 5)])
def test_killed_at_any_moment_it_ends_the_same(small_params, rsna, tmp_path, write_params, run, precision, kills):
    small_params["train"] |= {"epochs": 5, "batch_size": 4, "checkpoint_steps": 1, "precision": precision}
    preprocess(Params.model_validate(small_params))
    split(Params.model_validate(small_params))
    folders = {}
    for name, count in (("whole", 0), ("killed", kills)):
        folders[name] = folder = tmp_path / name
        shutil.copytree(tmp_path / "data", folder / "data")
        write_params(small_params, folder / "params.yaml")
        store = f"sqlite:///{folder}/mlflow.db"
        done = run("tests.stages.train_and_kill", count, cwd=folder, MLFLOW_TRACKING_URI=store)
        assert done.returncode == 0, done.stderr

    weights, wanted = (load_file(folders[name] / "models/model.safetensors") for name in ("killed", "whole"))
    assert all((weights[name] == value).all() for name, value in wanted.items())
    model, other = ((folders[name] / "models/model.json").read_text() for name in ("killed", "whole"))
    assert model == other
    killed, whole = history(folders["killed"]), history(folders["whole"])
    assert killed == whole
    assert [step for step, _ in whole["train/loss"]] == list(range(len(whole["train/loss"])))
    assert [step for step, _ in whole["val/map"]] == [1, 2, 3, 4, 5]


@pytest.mark.long
def test_a_result_that_dvc_lost_is_not_trained_again(small_params, rsna, tmp_path, write_params, run):
    """After a kill between the stage's end and DVC's record of it, DVC removes the model and runs the stage again."""
    preprocess(Params.model_validate(small_params))
    split(Params.model_validate(small_params))
    write_params(small_params)
    store = f"sqlite:///{tmp_path}/mlflow.db"
    assert run("pipeline.stages.train", cwd=tmp_path, MLFLOW_TRACKING_URI=store).returncode == 0
    names = ("model.safetensors", "model.json", "seen.json", "mlflow_run.json")
    wanted = {name: (tmp_path / "models" / name).read_bytes() for name in names}
    noted = history(tmp_path)
    shutil.rmtree(tmp_path / "models")
    again = run("pipeline.stages.train", cwd=tmp_path, MLFLOW_TRACKING_URI=store)
    assert again.returncode == 0, again.stderr
    assert "has ended before: its best epoch is used" in again.stderr
    assert {name: (tmp_path / "models" / name).read_bytes() for name in names} == wanted
    assert history(tmp_path) == noted


@pytest.mark.slow
def test_other_candidates_choose_anew_without_training(small_params, rsna, tmp_path, write_params, run):
    small_params["evaluate"]["candidates"] = {"nms_thresh": [], "soft_nms_sigma": [], "box_shrink": []}
    preprocess(Params.model_validate(small_params))
    split(Params.model_validate(small_params))
    store = {"MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db"}

    def train(**changes):
        small_params["evaluate"] |= changes
        write_params(small_params)
        done = run("pipeline.stages.train", cwd=tmp_path, **store)
        assert done.returncode == 0, done.stderr
        (folder,) = (tmp_path / "checkpoints").iterdir()
        return done.stderr, folder, json.loads((tmp_path / "models/model.json").read_text())

    _, folder, model = train()
    trained = history(tmp_path)
    # Boxes that shrink to a thousandth match nothing, so this candidate is never chosen; it is only tried.
    tried = {"nms_thresh": [0.9], "soft_nms_sigma": [], "box_shrink": [0.999]}
    messages, same_folder, same_model = train(candidates=tried)
    assert "epoch 1/" not in messages
    assert "has ended before: its best epoch is used" in messages
    assert (same_folder, same_model) == (folder, model)
    assert history(tmp_path) == trained
    # Another post-processing may make another epoch the best one: that is another training.
    messages, other_folder, _ = train(detections_per_img=7)
    assert other_folder != folder
    assert "has ended before" not in messages


def history(folder):
    """Return metric -> (step, value) of the folder's only run, without metrics that depend on the clock."""
    client = mlflow.MlflowClient(f"sqlite:///{folder}/mlflow.db")
    (run,) = client.search_runs([client.get_experiment_by_name("rsna-pneumonia").experiment_id])
    assert run.info.status == "FINISHED"
    timed = {"train/images_per_second", "train/data_wait_share"}
    timed |= {key for key in run.data.metrics if key.startswith("system/")}  # of runs that take longer than ten seconds
    return {
        key: sorted((metric.step, metric.value) for metric in client.get_metric_history(run.info.run_id, key))
        for key in run.data.metrics.keys() - timed
    }
