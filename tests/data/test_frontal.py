"""Studies with several images: the frontal view is used, the others are set aside with a note."""

import shutil

import pandas as pd
import pydicom
import pytest

from pipeline.assembly.originals import read_originals
from pipeline.data.annotations import IMAGES, LABELS
from pipeline.data.checks import check_dataset
from pipeline.data.frontal import study_files
from pipeline.data.parallel import Workers
from pipeline.data.prepared import read_index
from pipeline.dicom.radiograph import read_radiograph
from pipeline.errors import UserError
from pipeline.jobs.export_labels import export_labels
from pipeline.params import load_params
from pipeline.stages.preprocess import preprocess
from tests.data.headers import change

ONE = Workers(1)


@pytest.fixture
def ids(rsna):
    return pd.read_csv(rsna / LABELS)["patientId"].drop_duplicates().to_list()


def copy(rsna, key, name, **values):
    target = rsna / IMAGES / name
    target.parent.mkdir(exist_ok=True)
    return change(shutil.copy(rsna / IMAGES / f"{key}.dcm", target), **values)


def issues(found, rule):
    return {issue.study: issue.detail for issue in found.issues if issue.rule.name == rule}


def test_the_frontal_view_of_each_study_is_used(rsna, ids):
    """An archive's export has a folder for each study, with any file names and with objects that are no image."""
    wanted = {}
    for key, lateral in zip(ids[:3], ({"ViewPosition": "LL"}, {"ViewPosition": "", "SeriesDescription": "Chest LAT"},
                                      {"ViewPosition": "X"}), strict=True):  # fmt: skip
        copy(rsna, key, f"{key}/IM1", **lateral)
        wanted[key] = copy(rsna, key, f"{key}/IM2", ViewPosition="PA")
        report = pydicom.dcmread(wanted[key])
        del report.PixelData
        report.save_as(rsna / IMAGES / key / "IM3")
        (rsna / IMAGES / f"{key}.dcm").unlink()
    found = check_dataset(rsna, ONE, 60)
    assert found.problems == {}
    assert {key: found.files[key] for key in wanted} == wanted
    notes = [issue.detail for issue in found.issues if issue.rule.name == "other_image" and issue.study == ids[0]]
    assert notes == ["'IM1' (LL)", "'IM3' (no image)"]
    assert study_files(rsna / IMAGES, ids[:3]) == list(wanted.values())
    export_labels(rsna, rsna / "coco.json")


def test_where_none_or_several_may_be_meant_the_study_is_unusable(rsna, ids):
    copy(rsna, ids[0], "a/1.dcm", ViewPosition="AP")
    (rsna / IMAGES / "a/1.dcm").rename(rsna / IMAGES / f"a/{ids[0]}.dcm")
    change(rsna / IMAGES / f"{ids[0]}.dcm", ViewPosition="PA")
    copy(rsna, ids[1], f"{ids[1]}/2.dcm", ViewPosition="RL")
    change(rsna / IMAGES / f"{ids[1]}.dcm", ViewPosition="LL")
    found = check_dataset(rsna, ONE, 60)
    assert found.problems == {
        ids[0]: f"several files for one study: 'a/{ids[0]}.dcm' (AP), '{ids[0]}.dcm' (PA)",
        ids[1]: f"several files for one study: '{ids[1]}/2.dcm' (RL), '{ids[1]}.dcm' (LL)",
    }
    with pytest.raises(UserError, match=f"{ids[1]}: several files for one study"):
        study_files(rsna / IMAGES, ids[1:2])


def test_a_lateral_view_alone_is_set_aside_or_kept(rsna, ids, small_params, write_params, tmp_path, caplog):
    caplog.set_level("INFO")
    change(rsna / IMAGES / f"{ids[4]}.dcm", ViewPosition="LL")
    (rsna / "metadata.csv").write_text(f"patientId,view\n{ids[5]},lat\n")
    change(rsna / IMAGES / f"{ids[5]}.dcm", ViewPosition="", SeriesDescription="")
    found = check_dataset(rsna, ONE, 60)
    assert set(issues(found, "lateral")) == {ids[4], ids[5]}
    assert (found.problems, found.lateral) == ({}, 2)
    assert "0 unusable; 2 lateral, set aside" in found.summary()
    for choice, count in (("set_aside", 58), ("keep", 60)):
        small_params["data"]["lateral"] = choice
        preprocess(load_params(write_params(small_params)))
        index = read_index(tmp_path / "data/prepared")
        assert len(index) == count
        assert set(ids) - set(index["patientId"]) == (set() if choice == "keep" else {ids[4], ids[5]})
        assert ("set aside 2 lateral views" in caplog.text) == (choice == "set_aside")
        caplog.clear()
    assert check_dataset(rsna, ONE, 60, keep_lateral=True).lateral == 0


def test_originals_are_the_chosen_images(rsna, ids, small_params, write_params):
    copy(rsna, ids[0], f"{ids[0]}/side.dcm", ViewPosition="LL", PatientSex="O")
    change(rsna / IMAGES / f"{ids[0]}.dcm", ViewPosition="PA")
    (read,) = read_originals(load_params(write_params(small_params)), ids[:1])
    assert read.view == read_radiograph(rsna / IMAGES / f"{ids[0]}.dcm").view == "PA"


def test_a_file_that_ends_its_process_is_set_aside(rsna, ids, monkeypatch):
    copy(rsna, ids[0], f"{ids[0]}/crash.dcm", ViewPosition="LL")
    monkeypatch.setattr("pipeline.data.frontal.map_jobs", lambda function, jobs, *_: [None for _ in jobs])
    assert issues(check_dataset(rsna, ONE, 60), "image_once")[ids[0]].count("(no image)") == 2
