import json
import sys
import warnings

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.uid import DeflatedExplicitVRLittleEndian

from pipeline.data.annotations import IMAGES
from pipeline.dicom.radiograph import read_radiograph
from pipeline.errors import BadStudyError


def test_jpeg_is_as_pydicom_decodes_it(study):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wanted = pydicom.dcmread(study).pixel_array
    found = read_radiograph(study)
    assert found.pixels.dtype == np.uint8
    assert np.abs(found.pixels.astype(int) - wanted).max() <= 2
    assert found.view in ("AP", "PA")
    assert found.sex in ("M", "F")
    assert 1 <= found.age <= 148


def test_eight_bit_stays_and_monochrome1_is_inverted(make):
    pixels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    np.testing.assert_array_equal(read_radiograph(make(pixels)).pixels, pixels)
    inverted = read_radiograph(make(pixels, PhotometricInterpretation="MONOCHROME1")).pixels
    np.testing.assert_array_equal(inverted, 255 - pixels)
    rescaled = read_radiograph(make(pixels, RescaleSlope=1, RescaleIntercept=0)).pixels
    np.testing.assert_array_equal(rescaled, pixels)


@pytest.mark.parametrize("bits", [10, 12, 16])
def test_deep_pixels_are_windowed(make, bits):
    pixels = np.linspace(0, 2**bits - 1, 4096).astype(np.uint16).reshape(64, 64)
    centre, width = 2 ** (bits - 1), 2 ** (bits - 2)
    path = make(pixels, BitsStored=bits, HighBit=bits - 1, WindowCenter=centre, WindowWidth=width)
    found = read_radiograph(path).pixels.astype(float)
    # DICOM PS3.3 C.11.2.1.2: linear between centre - .5 -+ (width - 1) / 2.
    wanted = np.clip(((pixels - (centre - 0.5)) / (width - 1) + 0.5) * 255, 0, 255)
    assert np.abs(found - wanted).max() <= 1


def test_deep_pixels_without_a_window_fill_the_range(make):
    pixels = np.linspace(1000, 3000, 4096).astype(np.uint16).reshape(64, 64)
    found = read_radiograph(make(pixels)).pixels
    assert (found.min(), found.max()) == (0, 255)
    assert (np.diff(found.flatten().astype(int)) >= 0).all()


def test_rescale_comes_before_the_window(make):
    pixels = np.tile(np.arange(0, 4096, 64, dtype=np.uint16), (64, 1))
    plain = read_radiograph(make(pixels, BitsStored=12, HighBit=11, WindowCenter=2048, WindowWidth=4096)).pixels
    rescaled = make(
        pixels, BitsStored=12, HighBit=11, RescaleSlope=2, RescaleIntercept=-100, WindowCenter=3996, WindowWidth=8192
    )
    assert np.abs(read_radiograph(rescaled).pixels.astype(int) - plain).max() <= 1


@pytest.mark.parametrize(("text", "years"), [("43", 43), ("043Y", 43), ("006M", 0.5), ("", np.nan), ("old", np.nan)])
def test_ages(make, text, years):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = make(np.eye(8, dtype=np.uint8), PatientAge=text)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        if text == "old":
            warnings.simplefilter("ignore")
        np.testing.assert_allclose(read_radiograph(path).age, years)


@pytest.mark.parametrize("share", [0.05, 0.3, 0.6, 0.95, 0.99])
def test_a_truncated_file_is_refused(study, tmp_path, share):
    content = study.read_bytes()
    (tmp_path / "cut.dcm").write_bytes(content[: int(len(content) * share)])
    with pytest.raises(BadStudyError):
        read_radiograph(tmp_path / "cut.dcm")


def test_deflated_and_lying_files_are_refused(study, tmp_path, make):
    dataset = pydicom.dcmread(make(np.zeros((8, 8), np.uint8)))
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    dataset.save_as(tmp_path / "deflated.dcm")
    with pytest.raises(BadStudyError, match="Deflated"):
        read_radiograph(tmp_path / "deflated.dcm")
    lying = pydicom.dcmread(study)
    lying.Rows = 64
    lying.save_as(tmp_path / "lying.dcm")
    with pytest.raises(BadStudyError, match="the header says"):
        read_radiograph(tmp_path / "lying.dcm")
    lying.Rows = lying.Columns = 65000
    lying.save_as(tmp_path / "huge.dcm")
    with pytest.raises(BadStudyError, match="at most"):
        read_radiograph(tmp_path / "huge.dcm")


def test_other_images_are_refused(make):
    with pytest.raises(BadStudyError, match="must be MONOCHROME1"):
        read_radiograph(make(np.zeros((8, 8), np.uint8), PhotometricInterpretation="RGB"))
    with pytest.raises(BadStudyError, match="more than one frame"):
        read_radiograph(make(np.zeros((8, 8), np.uint8), NumberOfFrames=2))
    with pytest.raises(BadStudyError, match="Rows is missing"):
        read_radiograph(make(np.zeros((8, 8), np.uint8), Rows=None))
    with pytest.raises(BadStudyError, match="one value"):
        read_radiograph(make(np.full((8, 8), 7, np.uint16)))


@settings(max_examples=400)
@given(data=st.data())
def test_only_our_error_leaves_the_reader(study, tmp_path_factory, data):
    content = bytearray(study.read_bytes())
    for _ in range(data.draw(st.integers(1, 6))):
        place = data.draw(st.integers(0, min(len(content), 1500) - 1))
        content[place] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("fuzz") / "x.dcm"
    path.write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            pixels = read_radiograph(path).pixels
        except BadStudyError:
            return
    assert pixels.dtype == np.uint8
    assert pixels.ndim == 2


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_thousands_of_mutated_files(sample, repository, run, tmp_path):
    """The reader raises only ``BadStudyError`` and returns no wrong shape, and memory stays bounded."""
    done = run("tests.dicom.fuzz_dicom", sample / IMAGES, 3500, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    seen = json.loads(done.stdout)
    assert seen["read"] > 600
    assert seen["refused"] > 600
    assert seen["peak_mib"] < 600
