"""The view of a radiograph, wherever a header states it."""

import numpy as np
import pydicom
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.sr.codedict import codes

from pipeline.dicom.radiograph import read_radiograph, read_view
from pipeline.dicom.views import VIEWS, view_in_words
from pipeline.errors import BadStudyError

PIXELS = np.arange(256, dtype=np.uint8).reshape(16, 16)
VIEW_CODES = 0x00540220


@pytest.mark.parametrize(
    ("text", "view"),
    [
        ("view: PA", "PA"), ("Chest AP portable", "AP"), ("Thorax p.a.", "PA"), ("CHEST_PA_1", "PA"),
        ("W033 Chest A/P", "AP"), ("Postero-anterior", "PA"), ("anteroposterior view", "AP"),
        ("Chest LAT", "LAT"), ("Thorax seitlich", "LAT"), ("Thorax profil", "LAT"), ("Torace LL", "LL"),
        ("XTABLE LATERAL", "LAT"), ("lateral RL", "RL"), ("LAT LL", "LL"),
        ("Chest PA and lateral", ""), ("frontal and lateral", ""), ("AP PA", ""), ("face et profil", ""),
        ("lateral decubitus", ""), ("AP LLD lateral decubitus", "AP"), ("lateral oblique", ""),
        ("Chest", ""), ("", ""), ("PATIENT LATIMER", ""), ("Paul Apfel", ""), ("frontal", ""),
    ],
)  # fmt: skip
def test_words(text, view):
    assert view_in_words(text) == view


@given(st.text(max_size=64))
def test_only_a_view_leaves_a_description(text):
    assert view_in_words(text) in VIEWS | {""}


@pytest.mark.parametrize(
    ("code", "view"),
    [
        (codes.SCT.AnteroPosterior, "AP"), (codes.SCT.PosteroAnterior, "PA"), (codes.SCT.LeftLateral, "LL"),
        (codes.SCT.RightLateral, "RL"), (codes.SCT.LateralProjection, "LAT"), (codes.SCT.LeftAnteriorOblique, ""),
    ],
)  # fmt: skip
@pytest.mark.parametrize("scheme", ["SCT", "SRT"])
def test_codes_of_both_schemes(make, code, view, scheme):
    """pydicom's tables of SNOMED CT, and of the codes that older files have, are the oracle."""
    item = pydicom.Dataset()
    item.CodeValue, item.CodingSchemeDesignator = code.value, scheme
    if scheme == "SRT":
        from pydicom.sr._snomed_dict import mapping

        item.CodeValue = mapping["SCT"][code.value]
    path = make(PIXELS, ViewPosition="", SeriesDescription="Chest", Extra=(VIEW_CODES, "SQ", [item]))
    assert read_radiograph(path).view == read_view(path) == view


def test_the_first_element_that_tells_counts(make):
    item = pydicom.Dataset()
    item.CodeValue, item.CodingSchemeDesignator = codes.SCT.LeftLateral.value, "SCT"
    sequence = (VIEW_CODES, "SQ", [item])
    assert read_view(make(PIXELS, ViewPosition="PA", SeriesDescription="lateral", Extra=sequence)) == "PA"
    assert read_view(make(PIXELS, ViewPosition="LATERAL", SeriesDescription="PA")) == "LAT"
    assert read_view(make(PIXELS, ViewPosition=None, SeriesDescription="PA", Extra=sequence)) == "LL"
    assert read_view(make(PIXELS, ViewPosition="?", SeriesDescription="Chest pa", Extra=(VIEW_CODES, "SQ", []))) == "PA"
    assert read_view(make(PIXELS, ViewPosition=None, SeriesDescription=None)) == ""


@pytest.mark.parametrize("element", [(VIEW_CODES, "LO", "x"), (VIEW_CODES, "UT", "a" * 3_000_000)])
def test_a_sequence_that_is_none_costs_nothing(make, element):
    found = read_radiograph(make(PIXELS, ViewPosition="", SeriesDescription="AP", Extra=element))
    assert found.view == "AP"


def test_a_file_without_an_image_has_no_view(make, tmp_path):
    with pytest.raises(BadStudyError, match="contains no image: PixelData is missing"):
        read_view(make(PIXELS, PixelData=None))
    (tmp_path / "page.dcm").write_text("<html>")
    with pytest.raises(BadStudyError, match="not a DICOM"):
        read_view(tmp_path / "page.dcm")
