"""A data set with two classes of boxes, from its label table to a served model; each output names the classes."""

import base64
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import highdicom as hd
import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from pipeline.assembly.champion import OtherClassesError, compare_with_champion
from pipeline.assembly.detections import with_truth
from pipeline.assembly.inputs import read_inputs
from pipeline.assembly.labels import label_rules_of
from pipeline.data.annotations import GROUPS, IMAGES, LABELS
from pipeline.data.prepared import read_boxes
from pipeline.delivery.batch import list_files, predict_files
from pipeline.delivery.export import export_model
from pipeline.delivery.inbox import score_inbox
from pipeline.delivery.model_file import load_model
from pipeline.delivery.predictor import Predictor
from pipeline.delivery.scored import read_scored
from pipeline.delivery.served import ServedModel
from pipeline.delivery.serving_limits import ServingLimits
from pipeline.delivery.structured_report import ReportWriter
from pipeline.delivery.writers import PictureWriter, coco_writer, table_writer
from pipeline.detection.detect import detect
from pipeline.errors import UserError
from pipeline.evaluation.comparison import Scored
from pipeline.jobs.promote import promote
from pipeline.jobs.score import score_submission
from pipeline.params import Params, load_params
from pipeline.submission import read_submission
from pipeline.tracking import registered_champion
from tests.conftest import REPOSITORY

pytestmark = pytest.mark.slow

CLASSES = ("Nodule/Mass", "opacity")
LEFT = 55  # boxes that begin left of it are of the one class, pixels


STAGES = """
from pipeline.params import load_params
from pipeline.stages.evaluate import evaluate
from pipeline.stages.preprocess import preprocess
from pipeline.stages.split import split
from pipeline.stages.train import train
for stage in (preprocess, split, train, evaluate):
    stage(load_params())
"""


def environment(folder):
    return {**os.environ, "PYTHONPATH": str(REPOSITORY), "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db"}


def label(folder):
    """Give each box of a data set one of two classes, under names of another spelling."""
    table = pd.read_csv(folder / LABELS)
    table["class"] = np.where(table["Target"] == 0, "", np.where(table["x"] < LEFT, "Consolidation", "nodule/mass"))
    table.to_csv(folder / LABELS, index=False)


def give_splits(folder):
    """Write a split that comes with the data set: it tears one patient's two studies apart, and names three more."""
    groups = pd.read_csv(folder / GROUPS)
    first, second = groups[groups["groupId"] == groups["groupId"].value_counts().index[0]]["patientId"][:2]
    others = groups["patientId"][~groups["patientId"].isin([first, second])][:3]
    rows = [(first, "train"), (second, "test"), *((key, "test") for key in others)]
    pd.DataFrame(rows, columns=["patientId", "split"]).to_csv(folder / "splits.csv", index=False)


@pytest.fixture(scope="module")
def _made(tmp_path_factory, sample, _small_params, empty_store):
    folder = tmp_path_factory.mktemp("two") / "project"
    shutil.copytree(sample, folder / "data/rsna")
    label(folder / "data/rsna")
    give_splits(folder / "data/rsna")
    shutil.copy(empty_store, folder / "mlflow.db")
    values = yaml.safe_load(yaml.safe_dump(_small_params))
    values["classes"] = {"Nodule/Mass": [], "opacity": ["Consolidation"]}
    values["train"]["epochs"] = 4
    values["split"]["shared_patients"] = "allow"
    (folder / "params.yaml").write_text(yaml.safe_dump(values))
    shutil.copy(REPOSITORY / "dvc.yaml", folder)
    # In one process of its own: MLflow's warnings would be errors here.
    done = subprocess.run([sys.executable, "-c", STAGES], cwd=folder, env=environment(folder), capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    return folder


@pytest.fixture
def made(_made, monkeypatch):
    """Work in the project of two classes, which tests must not change."""
    monkeypatch.chdir(_made)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{_made}/mlflow.db")
    return _made


@pytest.fixture
def predictor(made):
    return Predictor(made / "models", torch.device("cpu"))


def test_prepared_boxes_have_the_classes_of_the_params(made):
    boxes = pd.read_csv("data/prepared/boxes.csv")
    wanted = np.where(boxes["x"] < LEFT, "opacity", "Nodule/Mass")
    assert boxes["class"].to_list() == wanted.tolist()
    splits = read_inputs(load_params())
    for data in splits.values():
        for true, labels in zip(data.boxes, data.labels, strict=True):
            assert labels.tolist() == (true[:, 0] < LEFT).astype(int).tolist()
    index = pd.read_csv("data/prepared/index.csv")
    assert set(index[index["target"] == 1]["class"]) == {"Nodule/Mass", "opacity", "Nodule/Mass + opacity"}
    with pytest.raises(UserError, match="prepared for other classes"):
        read_boxes(made / "data/prepared", [], ["opacity"])
    with pytest.raises(UserError, match="boxes of class Nodule/Mass, which `classes` does not name"):
        read_boxes(made / "data/prepared", [], ["opacity", "nodule"])


def test_the_split_that_came_with_the_data_is_kept_and_the_report_says_whom_it_tears_apart(made):
    given = pd.read_csv("data/rsna/splits.csv").set_index("patientId")["split"]
    found = pd.read_csv("data/splits.csv").set_index("patientId")["split"]
    assert found[given.index].equals(given)
    page = Path("reports/report.html").read_text()
    count = re.search(r"in several splits, which split.shared_patients allows: (\d+); scores are too good", page)
    groups = pd.read_csv("data/splits.csv").groupby("groupId")["split"].nunique()
    assert count is not None
    assert int(count[1]) == (groups > 1).sum() >= 1
    values = yaml.safe_load(Path("params.yaml").read_text())
    values["split"]["shared_patients"] = "refuse"
    with pytest.raises(UserError, match="a patient must be in one"):
        read_inputs(Params.model_validate(values))


def test_the_model_has_a_threshold_and_a_calibration_for_each_class(made):
    config = json.loads(Path("models/model.json").read_text())
    assert config["classes"] == list(CLASSES)
    assert (
        config["architecture"]["num_classes"] == len(config["operating_threshold"]) == len(config["calibration"]) == 2
    )
    config["operating_threshold"] = 0.5
    folder = Path(shutil.copytree("models", made / "broken"))
    (folder / "model.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="operating_threshold: 1 for 2 classes"):
        load_model(folder)


def test_the_evaluation_has_each_class(made):
    metrics = json.loads(Path("reports/metrics.json").read_text())
    for name in ("val", "test"):
        assert metrics[name]["Nodule/Mass/boxes"] + metrics[name]["opacity/boxes"] == metrics[name]["boxes"]
    each = [metrics["val"][f"{name}/map_50"] for name in CLASSES]
    assert metrics["val"]["map_50"] == pytest.approx(np.mean([value for value in each if value is not None]), abs=1e-6)
    page = Path("reports/report.html").read_text()
    assert "Each class on test" in page
    assert "Training losses" in page
    assert "Val during training" in page
    assert "Detection of 2 classes" in page
    store = mlflow.MlflowClient(f"sqlite:///{made}/mlflow.db")
    run = store.get_run(json.loads(Path("models/mlflow_run.json").read_text())["run_id"])
    assert run.data.metrics.keys() >= {"test/Nodule/Mass/map", "val/best_threshold/opacity", "test/map"}
    assert "test/opacity/boxes" not in run.data.metrics
    subgroups = pd.read_csv("reports/subgroups.csv")
    assert {"Nodule/Mass", "opacity"} < set(subgroups[subgroups["kind"] == "class"]["group"])


def test_the_scored_file_gives_the_metrics_of_each_class_again(made):
    metrics = json.loads(Path("reports/metrics.json").read_text())["test"]
    config, params = load_model(made / "models")[1], load_params()
    part = (Path("data/splits.csv"), "test")
    rules, arguments = label_rules_of(params), (Path("reports/detections.csv"), Path("data/rsna") / LABELS, 100, 17)
    found, note = score_submission(*arguments, config.thresholds, part, rules)
    calibrated = {key for key in metrics if "calibration_error" in key}
    assert {key: found[key] for key in metrics.keys() - calibrated} == pytest.approx(
        {key: metrics[key] for key in metrics.keys() - calibrated}, abs=1e-6
    )
    assert note.startswith(f"scored {metrics['images']} of the 60")
    with pytest.raises(UserError, match="3 score thresholds for 2 classes"):
        score_submission(*arguments, [0.1, 0.2, 0.3], part, rules)


def test_prediction_agrees_with_the_evaluation(made, predictor, reader, tmp_path):
    files = list_files([made / "data/rsna" / IMAGES])
    reports = ReportWriter(tmp_path / "sr")
    with table_writer(tmp_path / "p.csv") as table, coco_writer(tmp_path / "coco.json", CLASSES) as coco:
        predict_files(predictor, reader, files, 4, [table, coco, reports, PictureWriter(tmp_path / "pictures")])
    found = read_submission(tmp_path / "p.csv", CLASSES)
    wanted = read_submission(made / "reports/predictions.csv", CLASSES)
    assert sum(len(one.labels) for one in wanted.values()) > 0
    for key, one in wanted.items():
        assert found[key].labels.tolist() == one.labels.tolist()
        np.testing.assert_allclose(found[key].scores, one.scores, atol=2e-4)
    coco = json.loads((tmp_path / "coco.json").read_text())
    assert coco["categories"] == [{"id": 1, "name": "Nodule/Mass"}, {"id": 2, "name": "opacity"}]
    assert len(coco["annotations"]) == sum(len(one.labels) for one in found.values())
    names = {image["id"]: Path(image["file_name"]).stem for image in coco["images"]}
    for key, one in found.items():
        own = sorted(box["category_id"] - 1 for box in coco["annotations"] if names[box["image_id"]] == key)
        assert own == sorted(one.labels.tolist())
    assert not reports.problems
    key = next(key for key, one in found.items() if len(one.labels))
    content = hd.sr.srread(tmp_path / f"sr/{key}.dcm").content
    rois = content.get_planar_roi_measurement_groups()  # type: ignore[attr-defined]
    meanings = [group.finding_type.meaning for group in rois]
    assert meanings == [{"opacity": "Opacity"}.get(CLASSES[label], CLASSES[label]) for label in found[key].labels]
    images = content.get_image_measurement_groups()  # type: ignore[attr-defined]
    whole = [group.finding_type.meaning for group in images]
    assert len(whole) == 2
    assert all((CLASSES[n] in text or CLASSES[n] == text.lower()) for n, text in enumerate(whole))


def test_an_answer_and_a_line_of_the_inbox_name_the_classes(made, predictor, reader, tmp_path):
    path = sorted((made / "data/rsna" / IMAGES).glob("*.dcm"))[0]
    predictor.config = predictor.config.model_copy(update={"operating_threshold": (0.0, 0.0)})
    served = ServedModel(predictor, reader, ServingLimits())
    (answer,) = served.answer([{"dicom": base64.b64encode(path.read_bytes()).decode()}])
    assert set(answer["classes"]) == set(CLASSES)
    assert len(answer["classes"]) == len(answer["boxes"]) == len(answer["scores"])
    assert answer["class_scores"].keys() == set(CLASSES)
    assert answer["image_score"] == pytest.approx(max(answer["class_scores"].values()), abs=1e-6)
    (tmp_path / "in").mkdir()
    shutil.copy(path, tmp_path / "in")
    score_inbox(predictor, reader, "two", tmp_path / "in", tmp_path / "out", 1, 0)
    (row,) = read_scored(tmp_path / "out/scored.csv")
    assert row["PredictionString"] == answer["PredictionString"]
    assert int(row["findings"]) == len(answer["boxes"])


@pytest.mark.parametrize("suppression", ["soft_nms", "nms"])
def test_an_export_gives_the_models_boxes_of_each_class(made, tmp_path, suppression):
    """The calibrations of the classes order the detections otherwise than the network's scores."""
    folder = Path(shutil.copytree(made / "models", tmp_path / "models"))
    config = json.loads((folder / "model.json").read_text())
    config["postprocessing"] |= {"suppression": suppression, "detections_per_img": 6}
    for calibration, intercept in zip(config["calibration"], (2, -2), strict=True):
        calibration["box"] = {"slope": 1, "intercept": intercept}
    (folder / "model.json").write_text(json.dumps(config))
    export_model(folder, tmp_path / "out", "onnx")
    assert json.loads((tmp_path / "out/check.json").read_text())["images"] == 4


def test_a_champion_of_other_classes_is_not_compared(made):
    params = load_params()
    assert promote(params, made / "models", made / "reports").promoted
    test = read_inputs(params)["test"]
    config = load_model(made / "models")[1]
    read = read_submission(made / "reports/detections.csv", CLASSES)
    studies = zip(test.index["patientId"], test.boxes, test.labels, strict=True)
    scored = Scored([with_truth(read[key], *truth) for key, *truth in studies], config.thresholds, config.calibrations)
    same = compare_with_champion(params, test, scored, registered_champion())
    assert same.comparison.differences["map"][0] == pytest.approx(0, abs=1e-3)
    with pytest.raises(OtherClassesError, match="champion 1 detects Nodule/Mass, opacity; this model opacity, nodule"):
        compare_with_champion(params, replace(test, classes=("opacity", "nodule")), scored, registered_champion())


def test_detections_of_the_network_are_of_the_classes_that_it_learned(made):
    """A label is the position of the network's output: without the first class's outputs, only the second is found."""
    model, config = load_model(made / "models")
    with torch.no_grad():
        bias = model.class_head.last.bias.view(-1, 2)
        bias[:, 0] -= 50
    data = read_inputs(load_params())["val"]
    images = torch.from_numpy(np.stack([data.images[0], data.images[1]])[:, None].copy())
    for one in detect(model.eval(), images, replace(config.postprocessing, score_thresh=0.0001)):
        assert len(one["labels"]) > 0
        assert (one["labels"] == 1).all()
