"""`pneumoflow queue`: planted label errors are found, and corrected exports come back."""

import json
import shutil
from xml.etree import ElementTree as ET

import cv2
import numpy as np
import pandas as pd
import pydicom
import pytest
import torch
from pycocotools.coco import COCO

from pipeline.assembly.review import Model, look_at, read_studies
from pipeline.data.annotations import IMAGES, LABELS, read_annotations
from pipeline.data.geometry import xyxy
from pipeline.data.label_changes import label_changes
from pipeline.delivery.model_file import load_model, save_model
from pipeline.delivery.predictor import Predictor
from pipeline.detection.ensemble import Ensemble
from pipeline.detection.retinanet import RetinaNet
from pipeline.detection.settings import EnsembleSettings
from pipeline.dicom.radiograph import read_radiograph
from pipeline.errors import UserError
from pipeline.jobs.import_data import import_data
from pipeline.jobs.queue import queue
from pipeline.jobs.update_labels import update_labels
from pipeline.paths import OUT_OF_FOLD
from pipeline.submission import submission_table

CPU = torch.device("cpu")


def model_of(folder, name="models"):
    return Model(name, folder, Predictor(folder, CPU))


def find_all(rsna, folder):
    """Write out-of-fold detections that find each labelled box, and nothing else."""
    annotations = read_annotations(rsna)
    keys = annotations.studies["patientId"].to_list()
    boxes = [xyxy(own) for own in annotations.boxes_of(keys)]
    scores, labels = [np.full(len(own), 0.9) for own in boxes], [np.zeros(len(own), int) for own in boxes]
    (folder / OUT_OF_FOLD).write_text(submission_table(keys, boxes, scores, labels, ["lung opacity"]))


@pytest.fixture
def planted(rsna, tiny_model):
    """Remove a study's boxes from the labels, and add a box that nobody finds; return both studies, and those boxes."""
    find_all(rsna, tiny_model)
    table = pd.read_csv(rsna / LABELS)
    missing = table["patientId"][table["Target"] == 1].iloc[0]
    wrong = table["patientId"][table["Target"] == 0].iloc[0]
    removed = table[table["patientId"] == missing]
    table = table[(table["patientId"] != missing) & (table["patientId"] != wrong)]
    new = pd.DataFrame({"patientId": [missing, wrong], "x": [None, 5], "y": [None, 5], "width": [None, 30],
                        "height": [None, 30], "Target": [0, 1]})  # fmt: skip
    pd.concat([table, new]).to_csv(rsna / LABELS, index=False)
    (rsna / "stage_2_detailed_class_info.csv").unlink()
    return missing, wrong, removed


def rows(out):
    return pd.read_csv(out / "queue.csv", dtype={"patientId": str}).set_index("patientId")


def test_planted_label_errors_come_first(planted, rsna, tiny_model, reader, tmp_path):
    said = queue(rsna, [model_of(tiny_model)], tmp_path / "q", 5, reader)
    assert said.startswith("5 of 60 studies: ")
    missing, wrong, removed = planted
    found = rows(tmp_path / "q")
    assert list(found.index[:2]) == [missing, wrong]
    assert found["reason"].to_list()[:2] == ["missing box", "unfound box"]
    assert found.loc[missing, "missing box"] == pytest.approx(0.9)
    # The box that the other network found is suggested, whatever the first model finds where it was trained.
    tasks = json.loads((tmp_path / "q/label_studio.json").read_text())
    assert [one["score"] for one in tasks[0]["predictions"][0]["result"]] == [0.9] * len(removed)
    assert (tmp_path / "q").stat().st_mode & 0o077 == 0
    assert sorted(path.stem for path in (tmp_path / "q/images").iterdir()) == sorted(found.index)
    shown = cv2.imread(str(tmp_path / f"q/images/{wrong}.png"), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(shown, read_radiograph(rsna / IMAGES / f"{wrong}.dcm").pixels)


def as_export(tasks):
    """Turn tasks into Label Studio's export after a person accepted each suggestion."""
    return [
        {"data": task["data"], "annotations": [{"completed_by": 1, "result": task["predictions"][0]["result"]}]}
        for task in tasks
    ]


def test_suggestions_come_back_as_the_labels_that_they_are(planted, rsna, tiny_model, reader, tmp_path):
    model = model_of(tiny_model)
    queue(rsna, [model], tmp_path / "q", 8, reader)
    tasks = json.loads((tmp_path / "q/label_studio.json").read_text())
    before = read_annotations(rsna)
    for task in tasks:  # a person who removes all suggestions of the model
        kept = [one for one in task["predictions"][0]["result"] if "score" not in one]
        task["predictions"][0]["result"] = kept
    (tmp_path / "export.json").write_text(json.dumps(as_export(tasks)))
    update_labels(tmp_path / "export.json", rsna, "auto")
    assert label_changes(before, read_annotations(rsna)) == []


def test_both_files_hold_the_same_boxes(planted, rsna, tiny_model, reader, tmp_path):
    queue(rsna, [model_of(tiny_model)], tmp_path / "q", 8, reader)
    tasks = json.loads((tmp_path / "q/label_studio.json").read_text())
    (tmp_path / "export.json").write_text(json.dumps(as_export(tasks)))
    COCO(str(tmp_path / "q/coco.json"))
    for kind, source in (("labelstudio", tmp_path / "export.json"), ("coco", tmp_path / "q/coco.json")):
        import_data(source, tmp_path / kind, kind, tmp_path / "q/images")
    one, other = (read_annotations(tmp_path / kind) for kind in ("labelstudio", "coco"))
    assert len(one.boxes) > 0
    assert label_changes(one, other) == []
    interface = ET.fromstring((tmp_path / "q/label_studio.xml").read_text())
    assert [label.get("value") for label in interface.iter("Label")] == ["lung opacity"]
    names = {region["from_name"] for task in tasks for one in task["predictions"] for region in one["result"]}
    assert names == {next(interface.iter("RectangleLabels")).get("name")}


def test_the_model_is_no_witness_where_it_was_trained(rsna, tiny_model, reader, tmp_path):
    from pipeline.delivery.seen_patients import save_seen

    patients = read_annotations(rsna).studies["groupId"]
    save_seen(tiny_model, patients.drop_duplicates()[:20])
    said = queue(rsna, [model_of(tiny_model)], tmp_path / "q", 60, reader)
    trained_on = int(patients.isin(set(patients.drop_duplicates()[:20])).sum())
    assert f"label errors were not sought in {trained_on} studies" in said


def test_members_and_models_vote(rsna, tiny_model, reader, tmp_path):
    """An ensemble of two networks disagrees as its networks do one by one."""
    network, config = load_model(tiny_model)
    assert isinstance(network, RetinaNet)
    torch.manual_seed(1)
    other = RetinaNet(config.architecture).eval()
    save_model(tmp_path / "other", other, config)
    both = config.model_copy(update={"ensemble": EnsembleSettings(members=2, fusion_thresh=None)})
    save_model(tmp_path / "both", Ensemble([network, other], None), both)
    for path in sorted((rsna / IMAGES).iterdir())[6:]:
        path.unlink()
    votes = []
    for models in ([model_of(tmp_path / "both")], [model_of(tiny_model), model_of(tmp_path / "other")]):
        studies = read_studies(rsna, config.classes, None)
        votes.append(np.stack([np.stack(look.votes) for _, look in look_at(studies, models, reader)]))
    np.testing.assert_allclose(votes[0], votes[1], atol=1e-5)
    assert np.ptp(votes[0], axis=1).max() > 0


def test_a_folder_without_labels(sample, tiny_model, reader, tmp_path):
    folder = tmp_path / "new"
    folder.mkdir()
    files = sorted((sample / IMAGES).iterdir())[:4]
    for path in files[:3]:
        shutil.copy(path, folder)
    dataset = pydicom.dcmread(files[3])
    dataset.ViewPosition = "LL"
    dataset.save_as(folder / "side.dcm")
    (folder / "broken.dcm").write_bytes(b"nothing")
    said = queue(folder, [model_of(tiny_model)], tmp_path / "q", 10, reader)
    assert "3 of 3 studies: 3 uncertainty" in said
    assert "passed over: 1 studies that cannot be read" in said
    assert "passed over: 1 lateral views" in said
    assert set(rows(tmp_path / "q").index) == {path.stem for path in files[:3]}


def test_what_cannot_be_queued(rsna, tiny_model, reader, tmp_path, write_config):
    (tmp_path / "q").mkdir()
    (tmp_path / "q/mine").touch()
    with pytest.raises(UserError, match="q: has contents"):
        queue(rsna, [model_of(tiny_model)], tmp_path / "q", 5, reader)
    other = shutil.copytree(tiny_model, tmp_path / "other")
    write_config(other, lambda config: config.update(classes=["nodule"]))
    with pytest.raises(UserError, match="b: has other classes than a"):
        queue(rsna, [model_of(tiny_model, "a"), model_of(other, "b")], tmp_path / "new", 5, reader)
    with pytest.raises(UserError, match="no such folder"):
        queue(tmp_path / "none", [model_of(tiny_model)], tmp_path / "new", 5, reader)
    assert not (tmp_path / "new").exists()


def test_the_command(rsna, tiny_model, run, tmp_path):
    done = run("pipeline.cli", "queue", rsna, "--model", tiny_model, "--count", "3", "--out", tmp_path / "q")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("3 of 60 studies: ")
    assert len(rows(tmp_path / "q")) == 3
