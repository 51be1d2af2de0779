"""The options that the shipped profiles leave off, all switched on at once, in a run of the stages."""

import json
from importlib.metadata import version

import mlflow
import pytest
import yaml

from pipeline.data.annotations import IMAGES
from pipeline.delivery.model_file import load_model
from pipeline.delivery.predictor import Predictor
from pipeline.dicom.radiograph import read_radiograph
from pipeline.params import Params
from pipeline.stages.evaluate import evaluate
from pipeline.stages.preprocess import preprocess
from pipeline.stages.split import split
from pipeline.stages.train import train


@pytest.mark.long
def test_every_option_at_once(small_params, rsna, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    small_params["model"] |= {"anchors": "fit", "head_norm": "none", "p6_source": "c5"}
    small_params["loss"] |= {
        "classification": "cross_entropy", "sampling": "ohem", "box": "giou", "mask": {"bce": 1.0, "dice": 0.5},
        "image_class": 0.1, "normalizer": "ema",
    }  # fmt: skip
    small_params["evaluate"] |= {
        "suppression": "weighted_fusion", "flip": True, "box_shrink": 0.05, "score_gate": True, "score_thresh": 0.01,
    }  # fmt: skip
    small_params["preprocess"]["channels"] = ["clahe", "raw"]
    small_params["split"]["leaked"] = 0.1
    small_params["train"] |= {"picture_epochs": 2, "profile_steps": 1, "accumulate": 2, "optimizer": "sgd", "lr": 0.01}
    params = Params.model_validate(small_params)
    preprocess(params)
    split(params)
    with caplog.at_level("INFO"):
        train(params)
        evaluate(params)
    assert "anchors reach" in caplog.text
    assert "a leak would have added: rsna_score " in caplog.text
    metrics = json.loads((tmp_path / "reports/metrics.json").read_text())
    assert metrics["leaked"]["images"] >= 4
    gain = metrics["leaked"]["map"] - metrics["val"]["map"]
    assert metrics["leaked"]["map_inflation"] == pytest.approx(gain)
    assert "would have added for nothing" in (tmp_path / "reports/report.html").read_text()
    _, config = load_model(tmp_path / "models")
    assert config.architecture.mask_head
    assert config.architecture.in_channels == 2
    assert config.preprocessing.channels == ("clahe", "raw")
    path = sorted((rsna / IMAGES).glob("*.dcm"))[0]
    assert Predictor(tmp_path / "models").predict([read_radiograph(path).pixels], score_thresh=0)[0].image_score > 0
    assert config.architecture.image_classes == 3
    assert len(config.architecture.anchor_shapes) == 9
    assert config.postprocessing.flip
    run_id = json.loads((tmp_path / "models/mlflow_run.json").read_text())["run_id"]
    client = mlflow.MlflowClient()
    run = client.get_run(run_id)
    assert {"train/loss_mask", "train/loss_image_class", "test/map"} <= run.data.metrics.keys()
    files = {item.path for item in client.list_artifacts(run_id)}
    assert {"params.yaml", "environment.txt", "profile", "val"} <= files
    assert [item.path for item in client.list_artifacts(run_id, "val")] == ["val/epoch-0002.jpg"]
    text = mlflow.artifacts.load_text(f"runs:/{run_id}/params.yaml")
    assert Params.model_validate(yaml.safe_load(text)) == params
    assert f"torch=={version('torch')}" in mlflow.artifacts.load_text(f"runs:/{run_id}/environment.txt")
    assert {item.path for item in client.list_artifacts(run_id, "anchors")} == {
        "anchors/coverage.csv",
        "anchors/coverage.png",
    }
