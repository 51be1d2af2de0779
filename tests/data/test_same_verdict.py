"""``check`` and ``preprocess`` give the same verdict on each study, whatever is wrong with a data set."""

import os
import shutil

import numpy as np
import pandas as pd
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.uid import ExplicitVRLittleEndian

from pipeline.assembly.preprocessing import preprocessing_of
from pipeline.data.annotations import BOX, CLASSES, GROUPS, IMAGES, LABELS
from pipeline.data.checks import check_dataset
from pipeline.data.data_issues import by_rule
from pipeline.data.parallel import Workers
from pipeline.data.prepared import read_boxes, read_index
from pipeline.data.shards import fit_boxes
from pipeline.errors import BadStudyError, UserError
from pipeline.evaluation.subgroups import subgroups
from pipeline.params import load_params
from pipeline.stages.preprocess import preprocess
from tests.data.headers import change

ONE = Workers(1)


@pytest.fixture
def params(small_params, write_params):
    small_params["data"]["max_bad_fraction"] = 1.0
    return load_params(write_params(small_params))


@pytest.fixture
def ids(rsna):
    return pd.read_csv(rsna / LABELS)["patientId"].drop_duplicates().to_list()


def problems_of_preprocess(params, tmp_path):
    preprocess(params)
    table = pd.read_csv(tmp_path / "reports/quarantine.csv", dtype=str, keep_default_na=False)
    return dict(zip(table["patientId"], table["reason"], strict=True))


def break_everything(rsna, ids):
    """Put a defect of each kind into the data set; return how many studies can still be used."""
    images = rsna / IMAGES

    def file(number):
        return images / f"{ids[number]}.dcm"

    for number, values in enumerate(
        [{"PatientAge": None}, {"PixelSpacing": None}, {"PatientAge": None, "PixelSpacing": None},
         {"ViewPosition": None}, {"PatientSex": None}, {"PatientAge": ""}]
    ):  # fmt: skip
        change(file(number), **values)
    file(10).unlink()
    file(11).write_bytes(b"<!DOCTYPE html><html>sign in</html>")
    file(12).write_bytes(b"")
    file(13).write_bytes(file(13).read_bytes()[:1500])
    file(14).write_bytes(os.urandom(4000))
    shutil.copy(file(15), images / f"{ids[15]}.DCM")
    file(16).rename(images / f"{ids[16]}.png")  # still a DICOM file by its content
    (images / "sub").mkdir()
    file(17).rename(images / "sub" / ids[17])
    file(18).unlink()
    file(18).symlink_to("nowhere")
    dataset = pydicom.dcmread(file(19))
    dataset.PixelData, dataset.file_meta.TransferSyntaxUID = bytes(128 * 128), ExplicitVRLittleEndian
    dataset.save_as(file(19))
    shutil.copy(file(20), images / "no-label.dcm")
    os.mkfifo(images / "pipe.dcm")
    labels = pd.read_csv(rsna / LABELS, dtype=str, keep_default_na=False)
    broken = {21: ["100", "10", "60", "20", "1"], 22: ["1", "2", "0", "4", "1"], 23: ["1", "2", "3", "4", "7"],
              24: ["1", "2", "3", "4", "0"], 25: ["-1e-7", "2", "20", "126.0000001", "1"],
              26: ["", "", "", "", "NA"]}  # fmt: skip
    for number, values in broken.items():
        labels = labels[labels["patientId"] != ids[number]]
        row = dict(zip([*BOX, "Target"], values, strict=True), patientId=ids[number])
        labels = pd.concat([labels, pd.DataFrame([row])])
    labels.to_csv(rsna / LABELS, index=False)
    (rsna / CLASSES).unlink()
    groups = pd.read_csv(rsna / GROUPS)
    groups[groups["patientId"] != ids[27]].to_csv(rsna / GROUPS, index=False)
    return 60 - len([10, 11, 12, 13, 14, 15, 18, 19, 21, 22, 23, 24, 26, 27])


@pytest.mark.slow
def test_every_kind_of_defect(rsna, ids, params, tmp_path):
    usable = break_everything(rsna, ids)
    wanted = problems_of_preprocess(params, tmp_path)
    for rules in (preprocessing_of(params), None):
        found = check_dataset(rsna, ONE, 60, *([rules] if rules else []))
        assert found.problems == wanted
        assert found.problems.keys() <= set(ids)
        assert len(found.rows) == usable
    assert len(wanted) == 60 - usable
    index = read_index(tmp_path / "data/prepared").set_index("patientId")
    assert len(index) == usable
    assert np.isnan(index.loc[[ids[0], ids[2], ids[5]], "age"]).all()
    assert np.isnan(index.loc[[ids[1], ids[2]], "spacing"]).all()
    assert index["age"].notna().sum() == usable - 3
    # The box that rounding had put outside the image is moved inside.
    ((box,), _) = read_boxes(tmp_path / "data/prepared", [ids[25]], ["lung opacity"])
    assert box.tolist() == [[0, 2, 20, 126]]
    for name, reason in ((ids[18], "a file that cannot be read"), (ids[15], "several files")):
        assert reason in wanted[name]


@settings(max_examples=200)
@given(st.lists(st.tuples(*[st.floats(-2e-4, 70)] * 2, *[st.floats(1e-9, 140)] * 2), max_size=5))
def test_boxes_are_inside_their_image_or_refused(rows):
    boxes = np.array(rows).reshape(-1, 4)
    low, high = boxes[:, :2], boxes[:, :2] + boxes[:, 2:]
    size = np.array([100, 128])
    dust = 1e-6 * size
    if ((low < -dust) | (high > size + dust) | (high <= 0)).any():
        with pytest.raises(BadStudyError, match="reaches outside the image of 100 x 128"):
            fit_boxes(boxes, 128, 100)
        return
    found = fit_boxes(boxes, 128, 100)
    np.testing.assert_allclose(found, boxes, atol=1.3e-4)
    assert (found[:, :2] >= 0).all()
    assert (found[:, 2:] > 0).all()
    assert (found[:, :2] + found[:, 2:] <= size + 1e-12).all()


def test_nothing_usable(rsna, ids, params, tmp_path):
    for key in ids:
        path = rsna / IMAGES / f"{key}.dcm"
        path.write_bytes(path.read_bytes()[:900])
    wanted = problems_of_preprocess(params, tmp_path)
    assert wanted.keys() == set(ids)
    assert check_dataset(rsna, ONE, 60).problems == wanted
    assert len(read_index(tmp_path / "data/prepared")) == 0
    assert read_boxes(tmp_path / "data/prepared", [], ["lung opacity"]) == ([], [])


def test_nothing_known_of_any_patient(rsna, params, tmp_path):
    """De-identified data have no ages, spacings, sexes or views."""
    for path in (rsna / IMAGES).iterdir():
        change(path, PatientAge=None, PixelSpacing=None, PatientSex=None, ViewPosition=None)
    assert problems_of_preprocess(params, tmp_path) == {}
    assert check_dataset(rsna, ONE, 60).problems == {}
    index = read_index(tmp_path / "data/prepared")
    assert index[["age", "spacing"]].isna().all(axis=None)
    assert index["age"].dtype == index["spacing"].dtype == np.float64
    groups = {(kind, name): int(members.sum()) for kind, name, members in subgroups(index)}
    assert groups["age", "not known"] == groups["sex", "not known"] == groups["view", "not known"] == 60
    assert "Age in years" in (tmp_path / "reports/data.html").read_text()


def test_ages_in_months_are_of_an_age_band():
    studies = pd.DataFrame({"view": ["PA"] * 6, "sex": ["F"] * 6, "class": ["Normal"] * 6})
    studies["age"] = [17.5, 39.9, 0.1, 120.5, np.nan, 148]
    members = {name: chosen.tolist() for kind, name, chosen in subgroups(studies) if kind == "age"}
    assert members["0 to 17"] == [True, False, True, False, False, False]
    assert members["18 to 39"] == [False, True, False, False, False, False]
    assert members["80 to 120"] == [False, False, False, True, False, False]
    assert members["not known"] == [False, False, False, False, True, True]


def test_an_image_without_a_label_is_no_fault_of_a_study(rsna, ids, run, tmp_path, one_line_error):
    for key in ids:
        (rsna / IMAGES / f"{key}.dcm").rename(rsna / IMAGES / f"scan_{key}.dcm")
    done = run("pipeline.cli", "check", rsna, "--workers", "1", cwd=tmp_path)
    one_line_error(done, "60 unusable studies")
    assert "studies: 60 of" in done.stdout
    assert "; 60 unusable" in done.stdout
    assert "note: no label: the label table has no row for this image: 60" in done.stdout
    assert f"did you mean 'scan_{ids[0]}'? 60 of 60 ids match after adding 'scan_' in front" in done.stdout


def test_images_without_labels_do_not_stop_preprocessing(rsna, ids, small_params, write_params, tmp_path):
    small_params["data"]["max_bad_fraction"] = 0.0
    for number in range(5):
        shutil.copy(rsna / IMAGES / f"{ids[number]}.dcm", rsna / IMAGES / f"more-{number}.dcm")
    assert problems_of_preprocess(load_params(write_params(small_params)), tmp_path) == {}


def hint(rsna):
    """Return the cause that the first issue about a missing image suggests."""
    rules = by_rule(check_dataset(rsna, ONE, 60).issues)
    return next(cases[0].detail for rule, cases in rules.items() if rule.name == "image_there")


def rewrite_ids(rsna, change_id):
    for name in (LABELS, CLASSES, GROUPS):
        table = pd.read_csv(rsna / name, dtype=str, keep_default_na=False)
        table["patientId"] = table["patientId"].map(change_id)
        table.to_csv(rsna / name, index=False)


@pytest.mark.parametrize(
    ("change_id", "cause"),
    [
        (lambda key: f"{key}.dcm", "removing '.dcm'"),
        (str.upper, "writing capital and small letters alike"),
        (lambda key: f"IMG_{key}.tif", "removing 'img_' in front and '.tif' at the end"),
        (lambda key: key.replace("-", ""), "leaving out '-', '_' and '.'"),
    ],
)
def test_ids_that_are_written_otherwise(rsna, ids, change_id, cause):
    rewrite_ids(rsna, change_id)
    if cause.startswith("removing '.dcm'"):
        # An id with '.dcm' also matches a file's full name, so the files lose their suffix.
        for key in ids:
            (rsna / IMAGES / f"{key}.dcm").rename(rsna / IMAGES / key)
    found = hint(rsna)
    assert "did you mean" in found
    assert f"60 of 60 ids match after {cause}" in found


def test_files_that_are_named_by_another_id(rsna, ids):
    for key in ids:
        path = rsna / IMAGES / f"{key}.dcm"
        path.rename(rsna / IMAGES / str(pydicom.dcmread(path).SOPInstanceUID))
    assert hint(rsna) == "60 of 60 files have such an id as PatientID in their header; name each file by it"


def test_a_file_of_another_kind_is_named(rsna, ids):
    (rsna / IMAGES / f"{ids[0]}.dcm").unlink()
    (rsna / IMAGES / f"{ids[0]}.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    assert hint(rsna) == f"'{ids[0]}.png' is a PNG or JPEG image, left out beside DICOM files"


def test_ids_of_a_class_table_that_are_written_otherwise(rsna):
    table = pd.read_csv(rsna / CLASSES)
    table.assign(patientId=table["patientId"] + ".dcm").to_csv(rsna / CLASSES, index=False)
    problems = check_dataset(rsna, ONE, 60).problems
    assert len(problems) == 60
    assert "60 of 60 ids match after adding '.dcm'" in next(iter(problems.values()))


def test_cells_of_tables_are_no_formulas(rsna, ids, params, tmp_path):
    (rsna / IMAGES / f"{ids[0]}.dcm").unlink()
    classes = pd.read_csv(rsna / CLASSES)
    targets = pd.read_csv(rsna / LABELS).drop_duplicates("patientId").set_index("patientId")["Target"]
    negative = next(key for key in ids[1:] if not targets[key])
    classes.loc[classes["patientId"] == negative, "class"] = "=HYPERLINK(1)"
    classes.to_csv(rsna / CLASSES, index=False)
    problems_of_preprocess(params, tmp_path)
    assert ",'=HYPERLINK(1)," in (tmp_path / "data/prepared/index.csv").read_text()
    index = read_index(tmp_path / "data/prepared").set_index("patientId")
    assert index.at[negative, "class"] == "=HYPERLINK(1)"


def test_check_reads_the_params_that_are_there(rsna, run, small_params, write_params, tmp_path, one_line_error):
    small_params["preprocess"]["image_size"] = 65
    write_params(small_params)
    one_line_error(run("pipeline.cli", "check", rsna, "--workers", "1", cwd=tmp_path), "preprocess.image_size = 65")


def test_a_folder_of_pages_says_so(rsna):
    for path in (rsna / IMAGES).iterdir():
        path.write_text("<!DOCTYPE html><html>sign in</html>")
    with pytest.raises(UserError, match="no DICOM, PNG or JPEG files; the folder contains: 60 times an HTML page"):
        check_dataset(rsna, ONE, 60)
