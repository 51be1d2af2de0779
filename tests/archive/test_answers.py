"""Answers to an archive: each object is valid and beside its image; each study is answered once, whatever is killed."""

import shutil
import subprocess
from typing import Any

import highdicom as hd
import numpy as np
import pydicom
import pytest
import torch
from pydicom.uid import generate_uid

from pipeline.archive.sender import STORAGE_CLASSES, send_waiting
from pipeline.data.annotations import IMAGES
from pipeline.delivery.answers import AnswerWriter, make_answer
from pipeline.delivery.batch import Study
from pipeline.delivery.inbox import score_inbox
from pipeline.delivery.predictor import Predictor
from pipeline.dicom.radiograph import read_radiograph
from pipeline.errors import UserError
from tests.archive.conftest import PLANTED
from tests.archive.peer import GONE, archive
from tests.delivery.predictions import prediction

FOUND = prediction(np.array([[10.0, 20, 30, 60], [60, 30, 100, 90]]), np.array([0.9, 0.4]), 0.9)


@pytest.fixture
def image(sample, tmp_path):
    dataset = pydicom.dcmread(sorted((sample / IMAGES).glob("*.dcm"))[0])
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = generate_uid(), generate_uid()
    dataset.PatientName, dataset.PatientID = PLANTED, "77"
    dataset.save_as(tmp_path / "image.dcm")
    return tmp_path / "image.dcm"


@pytest.fixture
def inbox(image, tmp_path):
    (tmp_path / "inbox").mkdir()
    for n in range(3):
        dataset = pydicom.dcmread(image)
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        dataset.save_as(tmp_path / f"inbox/{n}.dcm")
    return tmp_path / "inbox"


@pytest.fixture
def answered(inbox, tiny_model, reader, tmp_path):
    """Score an inbox of three studies with answers; return the folder."""
    predictor, out = Predictor(tiny_model, torch.device("cpu")), tmp_path / "scored"
    out.mkdir()
    assert score_inbox(predictor, reader, "m", inbox, out, 2, 0, AnswerWriter(out / "answers")).scored == 3
    return out


def study(path):
    return Study(path, read_radiograph(path), FOUND)


def test_each_object_is_beside_its_image_and_shows_the_boxes(image):
    source = pydicom.dcmread(image)
    objects = make_answer(source, study(image))
    for one in objects.values():
        assert one.StudyInstanceUID == source.StudyInstanceUID
        assert (str(one.PatientName), one.PatientID) == (PLANTED, "77")
    assert len({one.SeriesInstanceUID for one in objects.values()} | {source.SeriesInstanceUID}) == 4
    content: Any = hd.sr.Comprehensive3DSR.from_dataset(objects["report"]).content
    assert len(content.get_planar_roi_measurement_groups()) == 2
    picture = objects["picture"]
    orange = (picture.pixel_array.astype(int) - [255, 140, 40]).__abs__().max(-1) < 40
    assert orange[20:60, 8:32].any()
    assert not orange[100:].any()
    (annotation,) = objects["marks"].GraphicAnnotationSequence
    (reference,) = annotation.ReferencedImageSequence
    assert reference.ReferencedSOPInstanceUID == source.SOPInstanceUID
    boxes = [np.array(one.GraphicData).reshape(-1, 2) for one in annotation.GraphicObjectSequence]
    np.testing.assert_array_equal([[*box.min(0), *box.max(0)] for box in boxes], FOUND.boxes)
    assert [one.UnformattedTextValue for one in annotation.TextObjectSequence] == ["0.90", "0.40"]


def test_a_study_without_findings_and_an_inverted_one(image):
    source, nothing = pydicom.dcmread(image), prediction(np.zeros((0, 4)), np.zeros(0), 0.01)
    source.PhotometricInterpretation = "MONOCHROME1"
    source.WindowCenter, source.WindowWidth = 100, 150
    objects = make_answer(source, Study(image, read_radiograph(image), nothing))
    assert "GraphicAnnotationSequence" not in objects["marks"]
    assert objects["marks"].PresentationLUTShape == "INVERSE"
    assert objects["marks"].SoftcopyVOILUTSequence[0].WindowWidth == 150


def test_an_answer_that_comes_back_is_not_answered(image, inbox, tiny_model, reader, tmp_path):
    """An archive may send all that it gets to us."""
    make_answer(pydicom.dcmread(image), study(image))["picture"].save_as(inbox / "3.dcm", enforce_file_format=True)
    out = tmp_path / "scored"
    out.mkdir()
    predictor, writer = Predictor(tiny_model, torch.device("cpu")), AnswerWriter(out / "answers")
    done = score_inbox(predictor, reader, "m", inbox, out, 2, 0, writer)
    assert (done.scored, done.passed_over) == (3, 1)
    assert len(list((out / "answers/waiting").iterdir())) == 3
    assert "made by pneumoflow itself" in (out / "scored.csv").read_text()


def test_the_same_answer_has_the_same_uids(image):
    source, other = pydicom.dcmread(image), prediction(FOUND.boxes[:1], FOUND.scores[:1], 0.9)

    def uids(found):
        objects = make_answer(source, Study(image, read_radiograph(image), found)).values()
        return {one.SOPInstanceUID for one in objects} | {one.SeriesInstanceUID for one in objects}

    assert uids(FOUND) == uids(FOUND)
    assert not uids(FOUND) & uids(other)


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="dicom3tools is not installed")
def test_each_object_is_valid(image, tmp_path):
    for name, one in make_answer(pydicom.dcmread(image), study(image)).items():
        one.save_as(tmp_path / f"{name}.dcm", enforce_file_format=True)
        said = subprocess.run(["dciodvfy", tmp_path / f"{name}.dcm"], capture_output=True, text=True, check=False)
        assert "Error" not in said.stderr, said.stderr


def test_answers_are_sent_once(answered):
    with archive() as (port, taken):
        assert send_waiting(answered, f"PACS@127.0.0.1:{port}", "US") == f"PACS@127.0.0.1:{port}: 3 answers sent"
        assert send_waiting(answered, f"PACS@127.0.0.1:{port}", "US").endswith("no answers wait")
    assert len(taken) == len(set(taken)) == 9


def test_what_the_archive_does_not_take_waits(answered):
    with pytest.raises(UserError, match="0 answers sent, 3 wait; the first reason: PACS at 127.0.0.1:9 does not"):
        send_waiting(answered, "PACS@127.0.0.1:9", "US")
    with archive([0, 0, 0, 0, 0xA700]) as (port, taken):
        with pytest.raises(UserError, match="2 answers sent, 1 wait; the first reason: PACS answered 0xA700"):
            send_waiting(answered, f"PACS@127.0.0.1:{port}", "US")
        send_waiting(answered, f"PACS@127.0.0.1:{port}", "US")
        assert len(set(taken)) == 9
    for address in ("PACS", "PACS@host", "PACS@host:99999", "ftp://host"):
        with pytest.raises(UserError, match="must be AETITLE@HOST:PORT"):
            send_waiting(answered, address, "US")


def test_an_archive_that_ends_in_the_middle_gets_the_rest_later(answered):
    with archive([0, 0, 0, 0, GONE]) as (port, taken):
        with pytest.raises(UserError, match="1 answers sent, 2 wait; the first reason: PACS "):
            send_waiting(answered, f"PACS@127.0.0.1:{port}", "US")
        send_waiting(answered, f"PACS@127.0.0.1:{port}", "US")
    assert len(set(taken)) == 9


def test_what_an_archive_has_no_place_for_is_named(answered, caplog):
    with archive(classes=STORAGE_CLASSES[:1]) as (port, taken):
        assert "3 answers sent" in send_waiting(answered, f"PACS@127.0.0.1:{port}", "US")
    assert len(taken) == 3
    for name in ("Grayscale Softcopy Presentation State Storage", "Secondary Capture Image Storage"):
        assert f"PACS does not accept {name}; answers are sent without it" in caplog.text


def test_half_written_and_damaged_answers_are_not_sent(answered):
    waiting = answered / "answers/waiting"
    (waiting / ".pneumoflow-1.tmp/new").mkdir(parents=True)  # as another process writes one, or was killed
    first = min(path for path in waiting.iterdir() if not path.name.startswith("."))
    (first / "report.dcm").write_bytes(b"no DICOM")
    with archive() as (port, taken), pytest.raises(UserError, match=f"2 answers sent, 1 wait; .*{first.name}: damaged"):
        send_waiting(answered, f"PACS@127.0.0.1:{port}", "US")
    assert len(taken) == 6
    assert (waiting / ".pneumoflow-1.tmp/new").exists()


def test_after_a_kill_the_same_objects_are_sent(answered, inbox, tiny_model, reader, tmp_path):
    """A kill between sending and noting it, or between an answer and the study's line, makes no second answer."""
    with archive() as (port, taken):
        send_waiting(answered, f"PACS@127.0.0.1:{port}", "US")
        first = next((answered / "answers/sent").iterdir())
        first.rename(answered / "answers/waiting" / first.name)  # as before it was noted
        (answered / "scored.csv").unlink()  # as before any line was written
        writer = AnswerWriter(answered / "answers")
        score_inbox(Predictor(tiny_model, torch.device("cpu")), reader, "m", inbox, answered, 2, 0, writer)
        assert [path.name for path in (answered / "answers/waiting").iterdir()] == [first.name]
        send_waiting(answered, f"PACS@127.0.0.1:{port}", "US")
    assert len(set(taken)) == 9
    assert len(taken) == 12


def test_a_study_without_an_identity_is_scored_and_named(inbox, tiny_model, reader, tmp_path, caplog):
    dataset = pydicom.dcmread(inbox / "0.dcm")
    del dataset.StudyInstanceUID
    dataset.save_as(inbox / "0.dcm")
    out = tmp_path / "scored"
    out.mkdir()
    writer = AnswerWriter(out / "answers")
    predictor = Predictor(tiny_model, torch.device("cpu"))
    assert score_inbox(predictor, reader, "m", inbox, out, 2, 0, writer).scored == 3
    assert len(list((out / "answers/waiting").iterdir())) == 2
    assert "no answer to" in caplog.text
    assert "StudyInstanceUID is missing" in caplog.text
    assert PLANTED.split("^")[0] not in caplog.text


@pytest.mark.parametrize("way", ["C-STORE", "STOW-RS"])
def test_orthanc_shows_the_answer_beside_its_image(answered, inbox, orthanc, way):
    dicom, base, ask = orthanc
    plugins = ask("/plugins")
    if way == "STOW-RS" and "dicom-web" not in plugins:
        pytest.skip("Orthanc's DICOMweb plugin is not installed")
    for path in inbox.iterdir():
        ask("/instances", path.read_bytes())
    address = f"ORTHANC@127.0.0.1:{dicom}" if way == "C-STORE" else f"{base}/dicom-web"
    assert send_waiting(answered, address, "US").endswith("3 answers sent")
    (one,) = ask("/studies")
    series = [ask(f"/series/{key}")["MainDicomTags"] for key in ask(f"/studies/{one}")["Series"]]
    modalities = sorted(tags["Modality"] for tags in series)
    assert modalities == sorted(["CR", *["OT", "PR", "SR"] * 3])
    assert ask("/statistics")["CountInstances"] == 12
