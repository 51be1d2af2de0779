"""A data set of PNG files, and the table of what their files lack."""

import cv2
import numpy as np
import pandas as pd
import pytest

from pipeline.data.annotations import IMAGES
from pipeline.data.checks import check_dataset, take_inventory
from pipeline.data.metadata import METADATA, fill_in, read_metadata
from pipeline.data.parallel import Workers
from pipeline.dicom.radiograph import read_radiograph
from pipeline.errors import UserError

FACTS = ["view", "sex", "age", "spacing"]


@pytest.fixture
def pictures(rsna):
    """Replace the DICOM files of a data set by PNG files with the same pixels; return its facts from the headers."""
    before = check_dataset(rsna, Workers(1), 60).rows
    for path in sorted((rsna / IMAGES).glob("*.dcm")):
        cv2.imwrite(str(path.with_suffix(".png")), read_radiograph(path).pixels)
        path.unlink()
    return before


def test_a_data_set_of_png_files_is_prepared_like_its_dicom_files(rsna, pictures):
    pictures[["patientId", *FACTS]].to_csv(rsna / METADATA, index=False)
    found = check_dataset(rsna, Workers(1), 60)
    assert found.problems == {}
    compared = ["patientId", *FACTS, "height", "width", "groupId", "class", "target", "mean", "deviation"]
    pd.testing.assert_frame_equal(found.rows[compared], pictures[compared])


def test_without_the_table_nothing_is_known(rsna, pictures):
    rows = check_dataset(rsna, Workers(1), 60).rows
    assert set(rows["view"]) == set(rows["sex"]) == {""}
    assert rows[["age", "spacing"]].isna().all(axis=None)


def test_a_header_counts_more_than_the_table():
    rows = pd.DataFrame({"patientId": ["a", "b", "c"], "view": ["AP", "", ""], "sex": ["", "F", ""],
                         "age": [50.0, np.nan, np.nan], "spacing": np.nan})  # fmt: skip
    table = pd.DataFrame({"view": ["PA", "PA"], "age": [1.0, 2.0]}, index=["a", "b"])
    filled = fill_in(rows, table)
    assert filled["view"].to_list() == ["AP", "PA", ""]
    assert filled["sex"].to_list() == ["", "F", ""]
    assert filled["age"].to_list()[:2] == [50.0, 2.0]
    assert np.isnan(filled["age"][2])


def test_studies_that_are_not_there_are_noted(rsna):
    (rsna / METADATA).write_text("patientId,view,age\nelsewhere,pa,\n")
    found = take_inventory(rsna)
    assert [issue.study for issue in found.issues if issue.rule.name == "metadata_used"] == ["elsewhere"]


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("patientId,view\na,front\n", "line 2: view 'front': must be AP, LAT, LL"),
        ("patientId,sex\na,M\nb,x\n", "line 3: sex 'x': must be F, M, O"),
        ("patientId,age\na,forty\n", "line 2: age 'forty': must be 0 to 160"),
        ("patientId,spacing\na,0\n", "line 2: spacing '0': must be 0.01 to 10"),
        ("patientId,age\na,1\na,2\n", "line 3: 'a' occurs twice"),
        ("view\nAP\n", "column 'patientId' is missing"),
    ],
)
def test_values_that_cannot_be(tmp_path, text, rule):
    (tmp_path / METADATA).write_text(text)
    with pytest.raises(UserError, match=rule):
        read_metadata(tmp_path)


def test_a_picture_beside_dicom_files_is_named_where_its_study_lacks_an_image(rsna):
    path = sorted((rsna / IMAGES).glob("*.dcm"))[0]
    cv2.imwrite(str(path.with_suffix(".png")), read_radiograph(path).pixels)
    path.unlink()
    problem = check_dataset(rsna, Workers(1), 60).problems[path.stem]
    assert problem.endswith(f"'{path.stem}.png' is a PNG or JPEG image, left out beside DICOM files")
