"""The same values are refused in ``params.yaml`` and in ``model.json``."""

import math
from dataclasses import fields

import pytest

from pipeline.data.settings import Preprocessing
from pipeline.delivery.model_file import load_model
from pipeline.detection.settings import Architecture, PostProcessing
from pipeline.errors import UserError
from pipeline.params import EvaluateParams, ModelParams, load_params

# Key of model.json -> key of params.yaml and wrong values.
SHARED: dict[str, tuple[str, list]] = {
    "architecture.backbone": ("model.backbone", ["", "a\nb", "x" * 200, 7]),
    "architecture.norm": ("model.norm", ["batch", None, 1]),
    "architecture.fpn_channels": ("model.fpn_channels", [0, -32, 33, 2**20, "many", math.nan]),
    "architecture.p6_source": ("model.p6_source", ["p4", 5]),
    "architecture.head_convs": ("model.head_convs", [0, -1, 9, 1.5]),
    "architecture.head_norm": ("model.head_norm", ["batch", None]),
    "architecture.prior_probability": ("model.prior_probability", [0, 1, -0.1, math.nan, math.inf]),
    "preprocessing.image_size": ("preprocess.image_size", [0, -128, 64, 250, 8192]),
    "preprocessing.clip_limit": ("preprocess.clahe.clip_limit", [-1, math.nan, math.inf, 1e9]),
    "preprocessing.tile_grid_size": (
        "preprocess.clahe.tile_grid_size", [[0, 8], [8, 0], [-1, 8], [65, 8], [8], [8, 8, 8], [2**31, 8]],
    ),
    "preprocessing.channels": ("preprocess.channels", [[], ["clahe", "clahe"], ["blue"], "clahe"]),
    "postprocessing.score_thresh": ("evaluate.score_thresh", [-0.1, 1.1, math.nan]),
    "postprocessing.nms_thresh": ("evaluate.nms_thresh", [7, 0, 1, -1, math.nan, math.inf]),
    "postprocessing.detections_per_img": ("evaluate.detections_per_img", [0, -1, 10**9, 1.5]),
    "postprocessing.topk_candidates": ("evaluate.topk_candidates", [0, -1, 10**9]),
    "postprocessing.suppression": ("evaluate.suppression", ["none", None]),
    "postprocessing.soft_nms_sigma": ("evaluate.soft_nms_sigma", [0, -1, 1e-300, math.nan]),
    "postprocessing.flip": ("evaluate.flip", ["perhaps", 2]),
    "postprocessing.box_shrink": ("evaluate.box_shrink", [-100, 1, math.nan]),
    "postprocessing.score_gate": ("evaluate.score_gate", ["perhaps"]),
}  # fmt: skip
CASES = [(model_key, params_key, value) for model_key, (params_key, values) in SHARED.items() for value in values]


def put(values, key, value):
    *sections, last = key.split(".")
    for section in sections:
        values = values[section]
    assert last in values
    values[last] = value


@pytest.mark.parametrize(("model_key", "params_key", "value"), CASES)
def test_both_refuse_a_value(small_params, write_params, tiny_model, write_config, model_key, params_key, value):
    put(small_params, params_key, value)
    with pytest.raises(UserError) as caught:
        load_params(write_params(small_params))
    assert params_key in str(caught.value)
    with pytest.raises(UserError) as caught:
        load_model(write_config(tiny_model, lambda config: put(config, model_key, value)))
    assert model_key in str(caught.value) or "not a finite number" in str(caught.value)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("value", [0, -1, math.nan, math.inf, 1e-9, 1e9])
@pytest.mark.parametrize("place", [0, 1])
def test_both_refuse_an_anchor(small_params, write_params, tiny_model, write_config, place, value):
    key = ("anchor_scales", "anchor_ratios")[place]
    small_params["model"][key][1] = value
    with pytest.raises(UserError, match=key):
        load_params(write_params(small_params))
    with pytest.raises(UserError, match="anchor_shapes|not a finite number"):
        load_model(write_config(tiny_model, lambda config: put_shape(config, place, value)))


def put_shape(config, place, value):
    config["architecture"]["anchor_shapes"][1][place] = value


def test_no_shared_key_is_forgotten():
    named = {key.split(".")[1] for key in SHARED} | {"anchor_shapes"}
    assert named >= {one.name for one in fields(PostProcessing)} | {one.name for one in fields(Preprocessing)}
    assert named >= ({one.name for one in fields(Architecture)} & {one.name for one in fields(ModelParams)})
    assert {one.name for one in fields(PostProcessing)} <= {one.name for one in fields(EvaluateParams)}


def test_too_many_anchors(small_params, write_params, tiny_model, write_config):
    small_params["model"]["anchor_scales"] = [1.0] * 30
    with pytest.raises(UserError, match="90 anchors per cell, at most 64"):
        load_params(write_params(small_params))

    def multiply(config):
        config["architecture"]["anchor_shapes"] *= 30

    with pytest.raises(UserError, match="anchor_shapes"):
        load_model(write_config(tiny_model, multiply))
