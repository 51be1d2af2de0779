import json
import re
import shutil

import numpy as np
import pandas as pd
import pytest
import torch

from pipeline.data.annotations import IMAGES
from pipeline.data.geometry import to_original
from pipeline.delivery.model_file import load_model, save_model
from pipeline.delivery.predictor import Predictor
from pipeline.dicom.radiograph import read_radiograph
from pipeline.errors import UserError
from pipeline.submission import read_submission


@pytest.fixture
def models(trained, tmp_path):
    return shutil.copytree(trained[0] / "models", tmp_path / "models")


def test_a_saved_model_is_the_same_model(models, tmp_path):
    model, config = load_model(models)
    save_model(tmp_path / "again", model, config)
    again, same = load_model(tmp_path / "again")
    assert same == config
    images = torch.randint(0, 255, (1, 1, 128, 128))
    assert torch.equal(model(images).logits, again(images).logits)
    assert not model.training


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("model.safetensors", lambda path: path.unlink(), "model.safetensors: no such file"),
        ("model.safetensors", lambda path: path.write_bytes(path.read_bytes()[:5000]), "damaged"),
        ("model.safetensors", lambda path: path.write_bytes(b"\x80\x04K\x01."), "damaged"),
        ("model.json", lambda path: path.unlink(), "model.json: no such file"),
        ("model.json", lambda path: path.write_text("{"), "not JSON"),
        (
            "model.json",
            lambda path: path.write_text(re.sub(r"(operating_threshold.: )", r"\g<1>7", path.read_text())),
            "operating_threshold = 7",
        ),
    ],
)
def test_a_damaged_model_is_refused(models, name, change, message):
    change(models / name)
    with pytest.raises(UserError, match=message):
        load_model(models)


def test_weights_of_another_architecture_are_refused(models):
    config = json.loads((models / "model.json").read_text())
    config["architecture"]["fpn_channels"] = 64
    (models / "model.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="damaged, or not of model.json"):
        load_model(models)


def test_prediction_agrees_with_the_evaluation(trained, sample):
    """Raw DICOM through `predict` gives the same boxes and scores as prepared shards through `evaluate`."""
    folder, _ = trained
    expected = read_submission(folder / "reports" / "predictions.csv")
    predictor = Predictor(folder / "models", torch.device("cpu"))
    for key, (boxes, scores, _) in list(expected.items())[:8]:
        found = predictor.predict([read_radiograph(sample / IMAGES / f"{key}.dcm").pixels])[0]
        np.testing.assert_allclose(found.scores, scores, atol=2e-4)
        np.testing.assert_allclose(found.boxes, boxes, atol=0.2)


def test_boxes_return_to_the_original_size():
    boxes = np.array([[10.0, 20, 30, 40], [100, 100, 128, 128]])
    np.testing.assert_allclose(to_original(boxes, 512, 256, 128), [[40, 80, 120, 160], [256, 400, 256, 512]])


def test_the_command(models, sample, tmp_path, run, one_line_error):
    file = sorted((sample / IMAGES).glob("*.dcm"))[0]
    done = run("pipeline.cli", "predict", models, file, "--out", tmp_path / "out", "--no-pictures")
    assert done.returncode == 0, done.stderr
    assert "1 studies" in done.stdout
    one_line_error(run("pipeline.cli", "predict", models, tmp_path / "no.dcm", "--out", tmp_path / "out2"), "no.dcm")
    one_line_error(
        run("pipeline.cli", "predict", tmp_path, file, "--out", tmp_path / "out2"), "model.json", "no such file"
    )
    assert not (tmp_path / "out2").exists()
    assert run("pipeline.cli", "predict", models).returncode == 2


def test_score_reproduces_the_evaluation(trained, sample, run, tmp_path, one_line_error):
    """Compare all keys, from the file of all detections; the reported boxes alone give the same RSNA score."""
    folder, _ = trained
    labels = sample / "stage_2_train_labels.csv"
    wanted = json.loads((folder / "reports/metrics.json").read_text())["test"]
    of_test = ("--split", "test", "--splits", folder / "data/splits.csv", "--draws", "100")
    threshold = json.loads((folder / "models/model.json").read_text())["operating_threshold"]
    done = run(
        "pipeline.cli", "score", folder / "reports/detections.csv", labels, *of_test, "--score-thresh", threshold
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    # The probability of an image is in the model's calibration, not in the file.
    same = [key for key in wanted if not key.startswith("calibration_error")]
    assert len(same) > 60
    assert {key: found[key] for key in same} == {key: wanted[key] for key in same}
    done = run("pipeline.cli", "score", folder / "reports/predictions.csv", labels, *of_test)
    found = json.loads(done.stdout)
    assert found.keys() == {key for key in wanted if not key.startswith("calibration_error_before")}
    for key in ("rsna_score", "rsna_score_low", "sensitivity", "specificity"):
        assert found[key] == pytest.approx(wanted[key], abs=1e-3), key
    (tmp_path / "bad.csv").write_text("patientId,PredictionString\nnobody,\n")
    one_line_error(run("pipeline.cli", "score", tmp_path / "bad.csv", labels), "'nobody' has no label")
    bad = run("pipeline.cli", "score", folder / "reports/predictions.csv", labels, "--split", "tset", *of_test[2:])
    one_line_error(bad, "no study is in the split 'tset'")


def test_score_against_another_file(trained, sample, run, tmp_path, one_line_error):
    labels, mine = sample / "stage_2_train_labels.csv", trained[0] / "reports/predictions.csv"
    table = pd.read_csv(mine, keep_default_na=False)
    table["PredictionString"] = ""
    table.to_csv(tmp_path / "nothing.csv", index=False)
    done = run("pipeline.cli", "score", mine, labels, "--against", tmp_path / "nothing.csv", "--draws", "100")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert set(found["rsna_score"]) == {"difference", "low", "high"}
    assert found["specificity"]["difference"] <= 0  # a file without boxes has no false alarms
    table[1:].to_csv(tmp_path / "fewer.csv", index=False)
    done = run("pipeline.cli", "score", mine, labels, "--against", tmp_path / "fewer.csv")
    one_line_error(done, "is in only one of the two files")
