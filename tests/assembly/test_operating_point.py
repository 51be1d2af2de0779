"""The choice of the score threshold, the suppression and the box shrink."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from pipeline.assembly import operating_point
from pipeline.assembly.inputs import read_inputs
from pipeline.assembly.operating_point import choose_operating_point
from pipeline.assembly.validation import results_in_prepared_pixels
from pipeline.data.manifest import write_manifest
from pipeline.detection.device import make_fabric
from pipeline.detection.postprocess import shrink
from pipeline.errors import UserError
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


def test_the_best_of_the_candidates_is_taken(prepared, monkeypatch):
    """Each box is found a third too large, and is found twice unless suppression is strict."""
    fabric = make_fabric("cpu", "32-true")
    val = read_inputs(prepared().preprocess)["val"]

    def predict(fabric, model, data, batch_size, post_processing):
        found = []
        for boxes in val.prepared_boxes():
            box = shrink(torch.from_numpy(boxes), -1 / 3)
            times = 1 if post_processing.nms_thresh < 0.35 else 2
            scores = torch.full((times * len(box),), 0.9)
            found.append({"boxes": box.repeat(times, 1), "scores": scores, "labels": torch.zeros_like(scores)})
        return found

    monkeypatch.setattr(operating_point, "predict", predict)
    post_processing = replace(POST_PROCESSING, score_thresh=0.01, nms_thresh=0.4)
    params = prepared(nms_thresh=[0.3, 0.5], box_shrink=[0.1, 0.25])
    chosen, threshold = choose_operating_point(params, fabric, None, post_processing, val)
    assert chosen == replace(post_processing, nms_thresh=0.3, box_shrink=0.25)
    found = [{**one, "boxes": shrink(one["boxes"], 0.25)} for one in predict(fabric, None, None, None, chosen)]
    assert rsna_score(results_in_prepared_pixels(found, val), threshold) == pytest.approx(1)
    # Among equally good candidates, the params' own values are taken.
    chosen, _ = choose_operating_point(
        prepared(nms_thresh=[0.5, 0.6], box_shrink=[0.0]), fabric, None, post_processing, val
    )
    assert chosen == post_processing


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


def test_a_gain_within_its_error_changes_nothing(prepared, monkeypatch):
    """Another suppression improves one image of val and nothing else, which is chance."""
    fabric = make_fabric("cpu", "32-true")
    val = read_inputs(prepared().preprocess)["val"]
    first = next(place for place, boxes in enumerate(val.prepared_boxes()) if len(boxes))

    def predict(fabric, model, data, batch_size, post_processing):
        found = []
        for place, boxes in enumerate(val.prepared_boxes()):
            good = place != first or post_processing.nms_thresh < 0.35
            box = shrink(torch.from_numpy(boxes), 0.0 if good else 0.2)
            found.append({"boxes": box, "scores": torch.full((len(box),), 0.9), "labels": torch.zeros(len(box))})
        return found

    monkeypatch.setattr(operating_point, "predict", predict)
    post_processing = replace(POST_PROCESSING, score_thresh=0.01, nms_thresh=0.4)
    chosen, _ = choose_operating_point(prepared(nms_thresh=[0.3], box_shrink=[]), fabric, None, post_processing, val)
    assert chosen == post_processing
