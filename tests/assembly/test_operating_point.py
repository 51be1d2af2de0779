"""The choice of the score threshold, the suppression and the box shrink."""

import json
import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from pipeline.assembly.inputs import read_inputs
from pipeline.assembly.operating_point import choose_operating_point
from pipeline.assembly.validation import results_in_prepared_pixels
from pipeline.data.manifest import write_manifest
from pipeline.detection.postprocess import shrink
from pipeline.errors import UserError
from pipeline.metrics.calibration import calibrated
from pipeline.metrics.rsna_score import rsna_score
from pipeline.params import Params
from pipeline.stages.preprocess import preprocess
from pipeline.stages.split import split
from pipeline.stages.train import train
from tests.detection.settings import POST_PROCESSING


@pytest.fixture
def prepared(small_params, rsna):
    """Prepare data; return a function that makes params for them."""

    def make(epochs=3, **candidates):
        small_params["train"]["epochs"] = epochs
        small_params["evaluate"]["candidates"] |= candidates
        return Params.model_validate(small_params)

    preprocess(make())
    split(make())
    return make


@pytest.mark.slow
def test_nothing_of_test_reaches_the_model(prepared, tmp_path):
    """Other images, boxes and classes of test leave the model and its operating point the same, byte for byte."""
    params = prepared()
    train(params)
    before = {path.name: path.read_bytes() for path in (tmp_path / "models").glob("model.*")}
    index, boxes = (pd.read_csv(tmp_path / f"data/prepared/{name}.csv") for name in ("index", "boxes"))
    splits = pd.read_csv(tmp_path / "data/splits.csv").set_index("patientId")["split"]
    of_test = index["patientId"].map(splits) == "test"
    assert of_test.sum() > 5
    for shard, rows in index[of_test].groupby("shard"):
        images = np.load(tmp_path / "data/prepared" / shard)
        images[rows["row"]] = 255 - images[rows["row"]]
        np.save(tmp_path / "data/prepared" / shard, images)
    index.loc[of_test, "class"] = "Normal"
    index.to_csv(tmp_path / "data/prepared/index.csv", index=False)
    boxes[boxes["patientId"].map(splits) != "test"].to_csv(tmp_path / "data/prepared/boxes.csv", index=False)
    write_manifest(tmp_path / "data/prepared")
    train(params)
    for name, content in before.items():
        assert (tmp_path / "models" / name).read_bytes() == content, name
    # Other boxes of val do change model.json, so the comparison can fail.
    of_val = boxes["patientId"].map(splits) == "val"
    boxes.loc[of_val, "x"] += 40
    boxes.to_csv(tmp_path / "data/prepared/boxes.csv", index=False)
    write_manifest(tmp_path / "data/prepared")
    train(params)
    assert (tmp_path / "models/model.json").read_bytes() != before["model.json"]


def test_the_best_of_the_candidates_is_taken(prepared):
    """Each box is found a third too large, and is found twice unless suppression is strict."""
    val = read_inputs(prepared())["val"]

    def detect_on_val(post_processing):
        found = []
        for boxes in val.prepared_boxes():
            box = shrink(torch.from_numpy(boxes), -1 / 3)
            times = 1 if post_processing.nms_thresh < 0.35 else 2
            scores = torch.full((times * len(box),), 0.9)
            found.append({"boxes": box.repeat(times, 1), "scores": scores, "labels": torch.zeros_like(scores)})
        return found

    post_processing = replace(POST_PROCESSING, score_thresh=0.01, nms_thresh=0.4)
    params = prepared(nms_thresh=[0.3, 0.5], box_shrink=[0.1, 0.25])
    point = choose_operating_point(params, detect_on_val, post_processing, val)
    chosen = point.post_processing
    assert chosen == replace(post_processing, nms_thresh=0.3, box_shrink=0.25)
    found = [{**one, "boxes": shrink(one["boxes"], 0.25)} for one in detect_on_val(chosen)]
    results = [calibrated(one, point.calibrations) for one in results_in_prepared_pixels(found, val)]
    assert rsna_score(results, point.thresholds) == pytest.approx(1)
    # Among equally good candidates, the params' own values are taken.
    params = prepared(nms_thresh=[0.5, 0.6], box_shrink=[0.0])
    assert choose_operating_point(params, detect_on_val, post_processing, val).post_processing == post_processing


def test_soft_nms_tries_its_own_setting(prepared):
    """Each box is found twice unless sigma is small; nms_thresh, which soft NMS does not use, is not tried."""
    val = read_inputs(prepared())["val"]

    def detect_on_val(post_processing):
        assert post_processing.nms_thresh == 0.5
        times = 1 if post_processing.soft_nms_sigma < 0.4 else 2
        found = []
        for boxes in val.prepared_boxes():
            scores = torch.full((times * len(boxes),), 0.9)
            box = torch.from_numpy(boxes).repeat(times, 1)
            found.append({"boxes": box, "scores": scores, "labels": torch.zeros_like(scores)})
        return found

    post_processing = replace(POST_PROCESSING, suppression="soft_nms", nms_thresh=0.5, soft_nms_sigma=0.5)
    params = prepared(nms_thresh=[0.2], soft_nms_sigma=[0.3, 1.0], box_shrink=[])
    chosen = choose_operating_point(params, detect_on_val, post_processing, val).post_processing
    assert chosen == replace(post_processing, soft_nms_sigma=0.3)


def test_model_json_has_what_was_chosen(prepared, tmp_path):
    train(prepared(epochs=1, nms_thresh=[0.45], box_shrink=[0.2]))
    config = json.loads((tmp_path / "models/model.json").read_text())
    assert config["postprocessing"]["nms_thresh"] in (0.3, 0.45)
    assert config["postprocessing"]["box_shrink"] in (0.0, 0.2)
    assert 0 <= config["operating_threshold"] <= 1


def test_a_val_split_without_a_box_is_one_line(prepared, tmp_path):
    params = prepared(epochs=1)
    boxes = pd.read_csv(tmp_path / "data/prepared/boxes.csv")
    splits = pd.read_csv(tmp_path / "data/splits.csv").set_index("patientId")["split"]
    boxes[boxes["patientId"].map(splits) != "val"].to_csv(tmp_path / "data/prepared/boxes.csv", index=False)
    write_manifest(tmp_path / "data/prepared")
    with pytest.raises(UserError, match=r"data/splits\.csv: no study of val has a box"):
        train(params)


def test_a_gain_within_its_error_changes_nothing(prepared):
    """Another suppression improves one image of val and nothing else, which is chance."""
    val = read_inputs(prepared())["val"]
    first = next(place for place, boxes in enumerate(val.prepared_boxes()) if len(boxes))

    def detect_on_val(post_processing):
        found = []
        for place, boxes in enumerate(val.prepared_boxes()):
            good = place != first or post_processing.nms_thresh < 0.35
            box = shrink(torch.from_numpy(boxes), 0.0 if good else 0.2)
            found.append({"boxes": box, "scores": torch.full((len(box),), 0.9), "labels": torch.zeros(len(box))})
        return found

    post_processing = replace(POST_PROCESSING, score_thresh=0.01, nms_thresh=0.4)
    params = prepared(nms_thresh=[0.3], box_shrink=[])
    assert choose_operating_point(params, detect_on_val, post_processing, val).post_processing == post_processing


def test_a_promised_sensitivity_sets_the_threshold(small_params, prepared):
    """Half of val's patients with an opacity have a score of .2, the others .9; all promises but one keep both."""
    val = read_inputs(prepared())["val"]
    scores = {}
    for number, (group, boxes) in enumerate(zip(val.index["groupId"], val.boxes, strict=True)):
        if len(boxes):
            scores.setdefault(group, 0.2 if number % 2 else 0.9)

    def detect_on_val(_):
        return [
            {"boxes": torch.from_numpy(boxes), "scores": torch.full((len(boxes),), scores.get(group, 0.0)),
             "labels": torch.zeros(len(boxes))}
            for group, boxes in zip(val.index["groupId"], val.prepared_boxes(), strict=True)
        ]  # fmt: skip

    def point(asked):
        small_params["evaluate"]["operating_point"] = asked
        return choose_operating_point(prepared(nms_thresh=[], box_shrink=[]), detect_on_val, POST_PROCESSING, val)

    strict = point({"sensitivity": 0.7})
    low = float(strict.calibrations[0].box(np.array(0.2)))
    assert low - 1e-5 < strict.thresholds[0] < low
    assert re.search(r"sensitivity 0.7 by patient, .*; on val 0 of \d+ patients missed", strict.rule)
    assert point({"sensitivity": 0.3}).thresholds[0] > low
    assert point("best_rsna").rule == "best RSNA score on val"
    with pytest.raises(UserError, match=r"sensitivity 0.99: val has \d+ patients .* the promise needs 99"):
        point({"sensitivity": 0.99})
    with pytest.raises(UserError, match="the promise needs 29"):
        point({"sensitivity": 0.9, "confidence": 0.95})
