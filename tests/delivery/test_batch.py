"""Predictions for many files, and the outputs that are written from them."""

import base64
import json
import os
import shutil
import threading

import cv2
import highdicom as hd
import numpy as np
import pydicom
import pytest
import torch
from pycocotools.coco import COCO

from pipeline.data.annotations import IMAGES, read_annotations
from pipeline.data.geometry import xyxy
from pipeline.data.reader import Reader
from pipeline.delivery.batch import Source, Study, list_files, predict_each, predict_files
from pipeline.delivery.inbox import score_inbox
from pipeline.delivery.model_file import load_model
from pipeline.delivery.predictor import Predictor
from pipeline.delivery.served import RequestError, ServedModel
from pipeline.delivery.serving_limits import ServingLimits
from pipeline.delivery.structured_report import ReportWriter, make_report
from pipeline.delivery.writers import PictureWriter, coco_writer, table_writer
from pipeline.dicom.radiograph import read_radiograph
from pipeline.errors import UserError
from pipeline.jobs.import_data import import_data
from pipeline.reports.drawing import DETECTION, draw_boxes
from pipeline.submission import read_submission
from tests.delivery.predictions import prediction
from tests.dicom.odd_decoders import CRASHING, HUNGRY, SLOW, decode


@pytest.fixture
def predictor(trained):
    return Predictor(trained[0] / "models", torch.device("cpu"))


@pytest.fixture
def folder(sample, tmp_path):
    """Make a folder of five studies and a damaged one."""
    files = sorted((sample / IMAGES).glob("*.dcm"))[:5]
    made = tmp_path / "in"
    made.mkdir()
    for path in files:
        shutil.copy(path, made)
    (made / "broken.dcm").write_bytes(files[0].read_bytes()[:900])
    return made


def keys(folder):
    return sorted(path.stem for path in folder.glob("*.dcm") if path.stem != "broken")


def test_bad_files_are_named_and_passed_over(predictor, reader, folder, tmp_path):
    with table_writer(tmp_path / "out/predictions.csv") as table:
        writers = [table, PictureWriter(tmp_path / "out/pictures")]
        done = predict_files(predictor, reader, [*list_files([folder]), tmp_path / "gone.dcm"], 2, writers)
    assert done.predicted == 5
    assert list(done.problems) == [folder / "broken.dcm", tmp_path / "gone.dcm"]
    assert done.problems[tmp_path / "gone.dcm"] == "No such file or directory"
    assert done.nearly_empty == []
    found = read_submission(tmp_path / "out/predictions.csv")
    assert list(found) == keys(folder)
    assert done.detections == sum(len(scores) for _, scores, _ in found.values())
    assert sorted(path.name for path in (tmp_path / "out/pictures").iterdir()) == [f"{key}.jpg" for key in keys(folder)]


def test_a_picture_shows_the_radiograph_and_its_boxes(predictor, reader, folder, tmp_path):
    key = keys(folder)[0]
    seen = []

    class Keep:
        def write(self, study):
            seen.append(study)

    predict_files(predictor, reader, [folder / f"{key}.dcm"], 1, [Keep(), PictureWriter(tmp_path)])
    pixels, found = seen[0].radiograph.pixels, seen[0].prediction
    assert len(found.boxes)
    wanted = draw_boxes(pixels, found.boxes, found.scores, [], max(pixels.shape))
    picture = cv2.imread(str(tmp_path / f"{key}.jpg"))
    assert picture.shape == wanted.shape
    assert np.abs(picture.astype(int) - wanted).mean() < 1.5
    orange = np.abs(wanted.astype(int) - DETECTION).max(2) == 0
    assert np.abs(picture[orange].astype(int) - DETECTION).mean() < 5


def test_a_list_of_paths(folder, tmp_path):
    paths = [folder / f"{key}.dcm" for key in keys(folder)[:2]]
    (tmp_path / "list.txt").write_text("\n".join(map(str, paths)) + "\n\n")
    assert list_files([tmp_path / "list.txt"]) == paths
    (tmp_path / "list.txt").write_text("nowhere.dcm")
    with pytest.raises(UserError, match=r"nowhere\.dcm: no such file or folder"):
        list_files([tmp_path / "list.txt"])
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="not a list of paths"):
        list_files([tmp_path / "binary.txt"])
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(UserError, match=r"empty\.txt: names no files"):
        list_files([tmp_path / "empty.txt"])


def test_files_are_found_by_content(folder, tmp_path, caplog):
    first, second, third, *_ = keys(folder)
    (folder / f"{first}.dcm").rename(folder / f"{first}.DCM")
    (folder / f"{second}.dcm").rename(folder / "1.2.840.99")
    (folder / "sub").mkdir()
    (folder / f"{third}.dcm").rename(folder / "sub" / third)
    (folder / "notes.txt").write_text("notes")
    wanted = {*keys(folder), first, "1.2.840.99", third, "broken"}
    os.mkfifo(folder / "pipe.dcm")
    found = list_files([folder])
    assert {Study(path, None, None).key for path in found} == wanted
    assert f"passed over {folder}/pipe.dcm: a pipe (FIFO)" in caplog.text
    empty = tmp_path / "pages"
    empty.mkdir()
    (empty / "a.dcm").write_text("<html>")
    with pytest.raises(UserError, match="no DICOM, PNG or JPEG files; the folder contains: an HTML page"):
        list_files([empty])
    assert list_files([empty, folder]) == found
    assert f"passed over {empty}: no DICOM, PNG or JPEG files; the folder contains: an HTML page" in caplog.text
    (folder / first).write_bytes((folder / f"{first}.DCM").read_bytes())
    with pytest.raises(UserError, match="has the same name as"):
        list_files([folder])


def test_a_few_studies_are_in_memory(predictor, reader, folder):
    """Check that files are read as the studies are asked for, a few ahead."""
    asked = []

    def sources():
        for number in range(50):
            asked.append(number)
            yield Source(folder / f"{keys(folder)[0]}.dcm")

    studies = predict_each(predictor, reader, sources(), 2, {})
    next(studies)
    assert len(asked) <= 8
    next(studies), next(studies)
    assert len(asked) <= 10


def test_the_next_batch_is_prepared_while_the_model_works(predictor, reader, folder, monkeypatch):
    prepare, predict = predictor.prepare, predictor.predict_prepared
    second = threading.Event()
    batches = []

    def note(images):
        batches.append(len(images))
        if len(batches) == 2:
            second.set()
        return prepare(images)

    def wait(*arguments):
        assert second.wait(60)
        return predict(*arguments)

    monkeypatch.setattr(predictor, "prepare", note)
    monkeypatch.setattr(predictor, "predict_prepared", wait)
    files = [Source(folder / f"{key}.dcm") for key in keys(folder)]
    assert [study.path for study in predict_each(predictor, reader, files, 2, {})] == [one.path for one in files]
    assert batches == [2, 2, 1]


def test_bytes_that_were_read_already(predictor, reader, folder):
    path = folder / f"{keys(folder)[0]}.dcm"
    content = path.read_bytes()
    (wanted,) = predict_each(predictor, reader, [Source(path)], 1, {})
    path.unlink()
    (found,) = predict_each(predictor, reader, [Source(path, content)], 1, {})
    assert (found.key, found.prediction.scores.tolist()) == (path.stem, wanted.prediction.scores.tolist())


def test_hostile_studies_cost_themselves_alone(predictor, folder):
    """Read studies that hang, exhaust the memory or crash: the model stays, and predicts the others."""
    good = [Source(folder / f"{key}.dcm") for key in keys(folder)]
    hostile = [Source(folder / f"{number}.dcm", kind) for number, kind in enumerate((SLOW, HUNGRY, CRASHING))]
    problems = {}
    with Reader(1, 2, 200 * 2**20, decode) as reader:
        found = list(predict_each(predictor, reader, [*hostile, *good, hostile[0]], 2, problems))
    assert [one.path for one in found] == [one.path for one in good]
    assert [str(problems[one.path]) for one in hostile] == [
        "took longer than 2 s to read",
        "needs more than 200 MiB of memory to read",
        "the decoder crashed (SIGSEGV)",
    ]


def test_a_nearly_empty_image_is_a_warning(trained, folder, tmp_path, run):
    path = folder / f"{keys(folder)[0]}.dcm"
    study = pydicom.dcmread(path)
    white = np.full((study.Rows, study.Columns), 255, np.uint8)
    white[:, ::2] = 250
    study.PixelData = encode_jpeg(white)
    study.save_as(folder / "\x1b[31mwhite.dcm")
    done = run("pipeline.cli", "predict", trained[0] / "models", folder, "--out", tmp_path / "out", "--no-pictures")
    assert done.returncode == 0, done.stderr
    warnings = [line for line in done.stderr.splitlines() if line.startswith("warning: ")]
    assert len(warnings) == 1
    assert "\\x1b[31mwhite.dcm: hardly any contrast, or nearly all black or white" in warnings[0]
    assert "6 studies" in done.stdout


def encode_jpeg(pixels):
    return pydicom.encaps.encapsulate([cv2.imencode(".jpg", pixels)[1].tobytes()])


def test_a_stop_in_the_middle_leaves_no_half_table(tmp_path):
    path = tmp_path / "predictions.csv"
    path.write_text("before")
    with pytest.raises(KeyboardInterrupt), table_writer(path), coco_writer(tmp_path / "coco.json", ["nodule"]):
        raise KeyboardInterrupt
    assert path.read_text() == "before"
    assert [one.name for one in tmp_path.iterdir()] == ["predictions.csv"]


def test_coco_opens_in_pycocotools(predictor, reader, folder, tmp_path, capsys):
    with coco_writer(tmp_path / "coco.json", ["lung opacity"]) as coco, table_writer(tmp_path / "table.csv") as table:
        predictor.config = predictor.config.model_copy(update={"operating_threshold": 0.0})
        done = predict_files(predictor, reader, list_files([folder]), 2, [coco, table])
    opened = COCO(str(tmp_path / "coco.json"))
    assert len(opened.imgs) == 5
    assert len(opened.anns) == done.detections > 0
    wanted = read_submission(tmp_path / "table.csv")
    for image in opened.imgs.values():
        boxes, scores, _ = wanted[image["file_name"].removesuffix(".dcm")]
        found = opened.loadAnns(opened.getAnnIds(image["id"]))
        assert [one["score"] for one in found] == pytest.approx(scores.tolist(), abs=1e-4)
        lower = np.array([one["bbox"][:2] for one in found])
        np.testing.assert_allclose(lower.reshape(-1, 2), boxes[:, :2], atol=0.06)
        assert (image["height"], image["width"]) == (128, 128)
    with coco_writer(tmp_path / "none.json", ["nodule"]):
        pass
    assert json.loads((tmp_path / "none.json").read_text())["images"] == []


def test_structured_reports_say_what_was_found(folder, tmp_path, predictor, reader):
    image = pydicom.dcmread(folder / f"{keys(folder)[0]}.dcm")
    boxes, scores = np.array([[10.0, 20, 30, 60], [5, 5, 50, 40]]), np.array([0.9, 0.4567])
    (study,) = predict_each(predictor, reader, [Source(folder / f"{keys(folder)[0]}.dcm")], 1, {})
    ReportWriter(tmp_path / "sr").write(Study(study.path, study.radiograph, prediction(boxes, scores, 0.9)))
    report = pydicom.dcmread(tmp_path / f"sr/{keys(folder)[0]}.dcm")
    assert report.SOPClassUID == pydicom.uid.Comprehensive3DSRStorage
    assert report.StudyInstanceUID == image.StudyInstanceUID
    assert report.PatientID == image.PatientID
    assert report.SeriesInstanceUID != image.SeriesInstanceUID
    assert image.PatientAge.isdigit()
    assert report.PatientAge == f"{int(image.PatientAge):03d}Y"
    assert report.ContentTemplateSequence[0].TemplateIdentifier == "1500"
    content = hd.sr.srread(tmp_path / f"sr/{keys(folder)[0]}.dcm").content
    groups = content.get_planar_roi_measurement_groups()  # type: ignore[attr-defined]
    assert len(groups) == 2
    for group, box, score in zip(groups, boxes, scores, strict=True):
        corners = group.roi.value
        assert [*corners.min(0), *corners.max(0)] == pytest.approx(box.tolist())
        assert group.finding_type.meaning == "Lung opacity"
        assert float(group.get_measurements()[0].value) == pytest.approx(score)
        assert group.roi.graphic_type == hd.sr.GraphicTypeValues.POLYLINE
    del image.PatientName
    make_report(image, prediction(np.zeros((0, 4)), np.zeros(0), 0.12)).save_as(tmp_path / "nothing.dcm")
    nothing = hd.sr.srread(tmp_path / "nothing.dcm")
    assert nothing.VerificationFlag == "UNVERIFIED"
    (group,) = nothing.content.get_image_measurement_groups()  # type: ignore[attr-defined]
    assert group.finding_type.meaning == "No lung opacity found"
    assert float(group.get_measurements()[0].value) == pytest.approx(0.12)


def test_the_command_with_everything(trained, folder, tmp_path, run):
    assert load_model(trained[0] / "models")
    done = run("pipeline.cli", "predict", trained[0] / "models", folder, "--out", tmp_path / "out", "--coco", "--sr")
    assert done.returncode == 0, done.stderr
    assert "passed over" in done.stderr
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "coco.json", "pictures", "predictions.csv", "sr",
    ]  # fmt: skip
    assert len(list((tmp_path / "out/sr").iterdir())) == 5


def test_png_files_are_predicted_like_dicom_files(predictor, reader, folder, tmp_path, caplog):
    pictures = tmp_path / "png"
    pictures.mkdir()
    for key in keys(folder)[:2]:
        cv2.imwrite(str(pictures / f"{key}.png"), read_radiograph(folder / f"{key}.dcm").pixels)
    tables, reports = [], ReportWriter(tmp_path / "sr")
    for files in (list_files([pictures]), [folder / f"{key}.dcm" for key in keys(folder)[:2]]):
        with table_writer(tmp_path / "t.csv") as table:
            assert predict_files(predictor, reader, files, 2, [table, reports]).predicted == 2
        tables.append((tmp_path / "t.csv").read_text())
    assert tables[0] == tables[1]
    assert len(reports.problems) == 2
    assert set(reports.problems.values()) == {"a PNG or JPEG file has no header to make a report from"}
    shutil.copy(next(pictures.iterdir()), folder)
    assert all(path.suffix == ".dcm" for path in list_files([folder]))
    assert "passed over 1 PNG or JPEG files beside the DICOM files" in caplog.text
    done = score_inbox(predictor, reader, "m", pictures, tmp_path / "out", 2, 0)
    assert (done.scored, done.passed_over) == (2, 0)


def test_a_lateral_view_is_set_aside_unless_the_model_was_trained_on_such(predictor, reader, folder, tmp_path):
    files = [folder / f"{key}.dcm" for key in keys(folder)[:2]]
    dataset = pydicom.dcmread(files[1])
    dataset.ViewPosition, dataset.SeriesDescription = "", "Chest lateral"
    dataset.save_as(files[1])
    done = predict_files(predictor, reader, files, 2, [])
    assert (done.predicted, list(done.problems)) == (1, [files[1]])
    reason = "a lateral view (LAT), set aside; the model was trained on frontal views"
    assert done.problems[files[1]] == reason
    inbox = tmp_path / "inbox"
    inbox.mkdir()
    shutil.copy(files[1], inbox)
    assert score_inbox(predictor, reader, "m", inbox, tmp_path / "out", 2, 0).passed_over == 1
    assert reason in (tmp_path / "out/scored.csv").read_text()
    served = ServedModel(predictor, reader, ServingLimits())
    with pytest.raises(RequestError, match="row 0: a lateral view"):
        served.answer([{"dicom": base64.b64encode(files[1].read_bytes()).decode()}])
    predictor.config = predictor.config.model_copy(update={"lateral_views": True})
    assert predict_files(predictor, reader, files, 2, []).predicted == 2


def test_predictions_in_coco_come_back_through_import(predictor, reader, folder, tmp_path):
    predictor.config = predictor.config.model_copy(update={"operating_threshold": 0.0})
    files = [folder / f"{key}.dcm" for key in keys(folder)]
    with (
        coco_writer(tmp_path / "coco.json", predictor.config.classes) as coco,
        table_writer(tmp_path / "t.csv") as table,
    ):
        predict_files(predictor, reader, files, 2, [coco, table])
    said = import_data(tmp_path / "coco.json", tmp_path / "back", "auto", folder)
    annotations = read_annotations(tmp_path / "back")
    found = read_submission(tmp_path / "t.csv")
    assert sum(len(one.scores) for one in found.values()) > 0
    assert "scores of predictions left out" in said
    for key, boxes in zip(keys(folder), annotations.boxes_of(keys(folder)), strict=True):
        np.testing.assert_allclose(xyxy(boxes), found[key].boxes, atol=0.11)  # the table has one decimal place
