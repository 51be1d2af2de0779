import json
import re
import shutil

import numpy as np
import pandas as pd
import pytest
import torch

from pipeline.data.annotations import IMAGES
from pipeline.data.dicom import read_radiograph
from pipeline.delivery.batch import predict_files
from pipeline.delivery.model_file import load_model, save_model
from pipeline.delivery.predictor import Predictor, to_original
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
    """Raw DICOM through `predict` gives what prepared shards through `evaluate` gave."""
    folder, _ = trained
    expected = read_submission(folder / "reports" / "predictions.csv")
    predictor = Predictor(folder / "models", torch.device("cpu"))
    for key, (boxes, scores) in list(expected.items())[:8]:
        found = predictor.predict([read_radiograph(sample / IMAGES / f"{key}.dcm").pixels])[0]
        np.testing.assert_allclose(found.scores, scores, atol=2e-4)
        np.testing.assert_allclose(found.boxes, boxes, atol=0.2)


def test_boxes_return_to_the_original_size():
    boxes = np.array([[10.0, 20, 30, 40], [100, 100, 128, 128]])
    np.testing.assert_allclose(to_original(boxes, 512, 256, 128), [[40, 80, 120, 160], [256, 400, 256, 512]])


def test_predicts_folders_and_passes_over_bad_files(models, sample, tmp_path):
    files = sorted((sample / IMAGES).glob("*.dcm"))[:5]
    folder = tmp_path / "in"
    folder.mkdir()
    for path in files:
        shutil.copy(path, folder)
    (folder / "broken.dcm").write_bytes(files[0].read_bytes()[:900])
    done = predict_files(Predictor(models, torch.device("cpu")), [folder], tmp_path / "out", 2, pictures=True)
    assert done.predicted == 5
    assert list(done.problems) == [folder / "broken.dcm"]
    assert list(read_submission(tmp_path / "out" / "predictions.csv")) == [path.stem for path in files]
    assert {path.stem for path in (tmp_path / "out" / "pictures").iterdir()} == {path.stem for path in files}


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
    folder, _ = trained
    predictions = pd.read_csv(folder / "reports/predictions.csv", keep_default_na=False)
    splits = pd.read_csv(folder / "data/splits.csv").set_index("patientId")["split"]
    test = predictions[predictions["patientId"].map(splits) == "test"]
    test.to_csv(tmp_path / "test.csv", index=False)
    labels = sample / "stage_2_train_labels.csv"
    done = run("pipeline.cli", "score", tmp_path / "test.csv", labels, "--draws", "100")
    assert done.returncode == 0, done.stderr
    found, wanted = json.loads(done.stdout), json.loads((folder / "reports/metrics.json").read_text())["test"]
    assert found.keys() == wanted.keys()
    assert found["rsna_score"] == pytest.approx(wanted["rsna_score"], abs=1e-3)
    assert found["rsna_score_low"] == pytest.approx(wanted["rsna_score_low"], abs=1e-3)
    (tmp_path / "bad.csv").write_text("patientId,PredictionString\nnobody,\n")
    one_line_error(run("pipeline.cli", "score", tmp_path / "bad.csv", labels), "'nobody' has no label")
