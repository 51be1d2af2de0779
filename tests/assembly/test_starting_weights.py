"""The weights from which training starts: which norm they need, what is known of them, and what if they are away."""

import hashlib
import json
import re
from pathlib import Path

import pytest
from safetensors.torch import save_file

from pipeline.assembly.training import (
    OPTIONAL_WEIGHTS,
    norm_of,
    pretraining_leak,
    starting_weights,
    without_unreachable_weights,
)
from pipeline.detection.backbones import Backbone
from pipeline.detection.pretrained import imagenet_file
from pipeline.errors import UserError
from pipeline.params import Params
from pipeline.stages.preprocess import preprocess
from pipeline.stages.split import split
from pipeline.stages.train import train

REAL = Path(__file__).resolve().parents[3] / "shared/real/hf_home"


@pytest.fixture
def away(tmp_path, monkeypatch):
    """Take the network and the cache away."""
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "empty"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


def of_imagenet(small_params, **model):
    small_params["model"] |= {"weights": "imagenet", "norm": "auto"} | model
    return Params.model_validate(small_params)


def test_weights_that_cannot_be_fetched_are_one_line(away):
    with pytest.raises(
        UserError, match="the weights of resnet10t: cannot be fetched; .*set model.weights: none"
    ) as caught:
        imagenet_file("resnet10t")
    assert "\n" not in str(caught.value)


def test_where_weights_are_optional_training_starts_without_them(small_params, away, monkeypatch, caplog):
    params = of_imagenet(small_params, frozen_stages=1)
    monkeypatch.delenv(OPTIONAL_WEIGHTS, raising=False)
    assert without_unreachable_weights(params) is params
    monkeypatch.setenv(OPTIONAL_WEIGHTS, "1")
    found = without_unreachable_weights(params)
    assert (found.model.weights, norm_of(found), found.model.frozen_stages) == ("none", "group", 0)
    assert found.train.lr == 2 * params.train.lr
    assert "Training starts from random weights" in caplog.text
    assert Params.model_validate(found.model_dump()) == found


@pytest.mark.slow
def test_a_run_says_that_it_started_without_them(small_params, rsna, tmp_path, away, monkeypatch, caplog):
    small_params["train"]["epochs"] = 1
    params = of_imagenet(small_params, frozen_stages=2)
    preprocess(params)
    split(params)
    with pytest.raises(UserError, match="the weights of resnet10t: cannot be fetched"):
        train(params)
    monkeypatch.setenv(OPTIONAL_WEIGHTS, "1")
    train(params)
    config = json.loads((tmp_path / "models/model.json").read_text())
    assert (config["started_from"], config["architecture"]["norm"]) == ("random weights", "group")
    assert "Training starts from random weights" in caplog.text


def test_the_norm_follows_the_weights(small_params, tiny_model):
    assert norm_of(of_imagenet(small_params)) == "frozen_batch"
    assert norm_of(of_imagenet(small_params, weights="none")) == "group"
    assert norm_of(of_imagenet(small_params, weights="none", norm="frozen_batch")) == "frozen_batch"
    assert norm_of(of_imagenet(small_params, weights=str(tiny_model))) == "group"
    (tiny_model / "model.json").write_text(
        (tiny_model / "model.json").read_text().replace('"norm": "group"', '"norm": "frozen_batch"')
    )
    assert norm_of(of_imagenet(small_params, weights=str(tiny_model))) == "frozen_batch"


@pytest.mark.slow
@pytest.mark.parametrize("trained_on", [["NIH ChestX-ray14"], ["CheXpert"]])
def test_a_model_remembers_weights_that_have_seen_its_test_images(small_params, rsna, tmp_path, caplog, trained_on):
    import mlflow
    import timm

    folder = tmp_path / "weights"
    folder.mkdir()
    save_file(timm.create_model("resnet10t").state_dict(), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"architecture": "resnet10t", "trained_on": trained_on}))
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()[:12]
    small_params["train"]["epochs"] = 1
    params = of_imagenet(small_params, weights="pretrained", backbone=f"local-dir:{folder}")
    leak = trained_on == ["NIH ChestX-ray14"]
    assert pretraining_leak(params) is leak
    preprocess(params)
    split(params)
    train(params)
    config = json.loads((tmp_path / "models/model.json").read_text())
    assert config["pretraining_leak"] is leak
    assert config["started_from"] == starting_weights(params) == f"pretrained weights of weights, sha256 {digest}"
    # model.json keeps the architecture, which is enough to rebuild the network, and not the folder.
    assert (config["architecture"]["backbone"], config["architecture"]["norm"]) == ("resnet10t", "frozen_batch")
    run = mlflow.MlflowClient().get_run(json.loads((tmp_path / "models/mlflow_run.json").read_text())["run_id"])
    assert ("pretraining_leak" in run.data.tags) is leak
    assert bool(re.search("was trained on NIH ChestX-ray14", caplog.text)) is leak


@pytest.mark.skipif(not REAL.exists(), reason="needs ImageNet weights on this disk")
def test_real_weights_come_from_the_cache(monkeypatch):
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(REAL / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    backbone = Backbone(
        "tf_efficientnet_lite0", "imagenet", "frozen_batch", file=imagenet_file("tf_efficientnet_lite0")
    )
    random = Backbone("tf_efficientnet_lite0", "none", "frozen_batch")
    trained, untrained = (dict(one.named_parameters()) for one in (backbone, random))
    assert trained.keys() == untrained.keys()
    name = next(name for name in trained if name.endswith("conv_pw.weight"))
    assert not trained[name].equal(untrained[name])
