import re

import pytest
import yaml

from pipeline.errors import UserError
from pipeline.params import load_params


def test_shipped_params_are_the_sample_profile(repository):
    assert (repository / "params.yaml").read_bytes() == (repository / "profiles/sample.yaml").read_bytes()


@pytest.mark.parametrize("name", ["params.yaml", "profiles/rsna.yaml"])
def test_shipped_files_load(repository, name):
    raw = yaml.safe_load((repository / name).read_text())
    assert raw["loss"]["mask"] == "none"
    raw["loss"]["mask"] = {}
    assert load_params(repository / name).model_dump() == raw


@pytest.mark.parametrize(
    ("section", "key", "value", "rule"),
    [
        ("loss", "alpha", 1.4, "loss.alpha = 1.4: input should be less than or equal to 1"),
        ("loss", "classification", "vocal", "loss.classification = 'vocal'"),
        ("train", "epochs", 0, "train.epochs = 0: input should be greater than or equal to 1"),
        ("train", "lr", float("nan"), "train.lr = nan: input should be a finite number"),
        ("train", "epoch", 3, "train.epoch = 3: unknown key"),
        ("preprocess", "image_size", 250, "preprocess.image_size = 250: input should be a multiple of 64"),
        ("schedule", "timezone", "Europe/Atlantis", "schedule.timezone = 'Europe/Atlantis': must be an IANA time zone"),
        ("split", "fractions", {"train": 0.5, "val": 0.2, "test": 0.2}, "fractions must add up to 1, these give 0.9"),
        ("preprocess", "image_size", 64, "preprocess.image_size = 64: input should be greater than or equal to 128"),
        ("evaluate", "score_gate", True, "evaluate.score_gate = true needs the image-level head"),
        ("loss", "mask", "iou", "loss.mask.iou"),
        ("loss", "mask", {"bce": 0.0}, "loss.mask.bce = 0.0: input should be greater than 0"),
        ("model", "frozen_stages", 1, "frozen_stages 1 need weights; set frozen_stages: 0 to train"),
        (
            "model",
            "backbone",
            "hf-hub:owner/name",
            "weights none: backbone hf-hub:owner/name names its weights; set pretrained",
        ),
    ],
)
def test_a_wrong_value_is_named_with_its_rule(small_params, write_params, section, key, value, rule):
    small_params[section][key] = value
    with pytest.raises(UserError) as caught:
        load_params(write_params(small_params))
    assert rule in str(caught.value)
    assert "params.yaml: " in str(caught.value)
    assert "\n" not in str(caught.value)


def test_trained_weights_keep_their_norm(small_params, write_params):
    small_params["model"] |= {"weights": "imagenet", "norm": "group"}
    with pytest.raises(UserError, match="weights imagenet need norm frozen_batch"):
        load_params(write_params(small_params))


def test_a_missing_key_is_named(small_params, write_params):
    del small_params["loss"]["gamma"]
    with pytest.raises(UserError, match=r"loss\.gamma is missing"):
        load_params(write_params(small_params))


def test_thresholds_out_of_order(small_params, write_params):
    small_params["loss"] |= {"fg_iou_thresh": 0.4, "bg_iou_thresh": 0.5}
    with pytest.raises(UserError, match=r"bg_iou_thresh must not exceed fg_iou_thresh, 0\.5 > 0\.4"):
        load_params(write_params(small_params))


@pytest.mark.parametrize("text", ["a: [", "\x00", "- 1", ""])
def test_a_file_that_is_no_mapping(tmp_path, text):
    (tmp_path / "params.yaml").write_text(text)
    with pytest.raises(UserError, match=r"params\.yaml: "):
        load_params(tmp_path / "params.yaml")


def test_a_missing_file(tmp_path):
    with pytest.raises(UserError, match=r"nowhere\.yaml: not found"):
        load_params(tmp_path / "nowhere.yaml")


def test_params_cannot_be_changed(repository):
    params = load_params(repository / "params.yaml")
    with pytest.raises(ValueError, match="frozen"):
        params.seed = 3


@pytest.mark.parametrize(
    ("classes", "rule"),
    [
        ([], "at least 1"),
        (["Nodule", "nodule"], "each class once"),
        ({"a": ["x"], "b": ["X"]}, "'X' means both 'a' and 'b'"),
        ({"a": ["b"], "b": []}, "'b' means both 'a' and 'b'"),
        (["a; b"], "classes"),
        (["../a"], "classes"),
        (["a + b"], "classes"),
    ],
)
def test_classes_are_plain_and_told_apart(small_params, write_params, classes, rule):
    small_params["classes"] = classes
    with pytest.raises(UserError, match=re.escape(rule)) as error:
        load_params(write_params(small_params))
    assert "classes" in str(error.value)


def test_classes_and_their_other_names(small_params, write_params):
    small_params["classes"] = {"opacity": ["Consolidation", "Opacity"], "Nodule/Mass": []}
    params = load_params(write_params(small_params))
    assert set(params.class_names) == {"opacity", "Nodule/Mass"}
    assert params.class_aliases["opacity"] == ["Consolidation", "Opacity"]
