"""Every kind of DICOM file among pydicom's own test files, and one real chest radiograph."""

import traceback
import warnings
from functools import cache
from pathlib import Path

import cv2
import data_store
import numpy as np
import pydicom
import pydicom.data
import pytest
from pydicom.dataset import Dataset
from pydicom.pixels import apply_voi_lut, pixel_array
from pydicom.uid import JPEGLossless

from pipeline.dicom.radiograph import TRANSFER_SYNTAXES, read_radiograph
from pipeline.errors import BadStudyError


@cache
def local_files():
    """Return the files that come with pydicom and pydicom-data; pydicom's own search would download more."""
    folders = (Path(pydicom.data.__file__).parent / "test_files", Path(data_store.__file__).parent / "data")
    return {path.name: path for folder in folders for path in sorted(folder.glob("*.dcm"))}


def local_file(name):
    return local_files()[name]


def theirs(name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset = pydicom.dcmread(local_file(name))
        return dataset, pixel_array(dataset)


def readable():
    """Return the names of the test files with one whole frame of 8 to 16 bits."""
    found = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, path in local_files().items():
            try:
                dataset = pydicom.dcmread(path)
                kind, frames = dataset.PhotometricInterpretation, int(dataset.get("NumberOfFrames") or 1)
                if kind == "PALETTE COLOR" or frames != 1 or dataset.BitsAllocated not in (8, 16):
                    continue
                if dataset.file_meta.TransferSyntaxUID not in TRANSFER_SYNTAXES or not dataset.PixelData:
                    continue
            except (AttributeError, ValueError, TypeError, KeyError, pydicom.errors.InvalidDicomError):
                continue
            # The first file is cut off; the second one's JPEG 2000 data were cut where they hold a delimiter's bytes.
            if name not in ("MR_truncated.dcm", "JPEG2000-embedded-sequence-delimiter.dcm"):
                found.append(name)
    return found


def test_every_kind_is_read():
    names = readable()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        headers = {name: pydicom.dcmread(local_file(name)) for name in names}
    kinds = {dataset.file_meta.TransferSyntaxUID for dataset in headers.values()}
    assert len(names) > 60
    assert kinds == TRANSFER_SYNTAXES - {JPEGLossless}
    for name, dataset in headers.items():
        pixels = read_radiograph(local_file(name)).pixels
        assert pixels.dtype == np.uint8
        assert pixels.shape == (dataset.Rows, dataset.Columns)
        assert pixels.max() > pixels.min()


def test_jpeg_lossless_of_any_predictor(tmp_path):
    """No test file has this transfer syntax; it includes process 14 with predictor 1."""
    dataset = pydicom.dcmread(local_file("JPGLosslessP14SV1_1s_1f_8b.dcm"))
    dataset.file_meta.TransferSyntaxUID = JPEGLossless
    dataset.save_as(tmp_path / "lossless.dcm")
    wanted = read_radiograph(local_file("JPGLosslessP14SV1_1s_1f_8b.dcm")).pixels
    np.testing.assert_array_equal(read_radiograph(tmp_path / "lossless.dcm").pixels, wanted)


@pytest.mark.parametrize(
    "names",
    [
        # Lossless versions of one image must agree to the last bit.
        ["MR_small.dcm", "MR_small_bigendian.dcm", "MR_small_implicit.dcm", "MR_small_RLE.dcm",
         "MR_small_jp2klossless.dcm", "MR_small_jpeg_ls_lossless.dcm"],
        ["RG1_UNCR.dcm", "RG1_J2KR.dcm"],
        ["SC_rgb.dcm", "SC_rgb_rle.dcm", "SC_rgb_expb.dcm", "SC_rgb_jpeg_gdcm.dcm"],
    ],
)  # fmt: skip
def test_one_image_in_many_syntaxes(names):
    first, *others = [read_radiograph(local_file(name)).pixels for name in names]
    for other in others:
        np.testing.assert_array_equal(first, other)


def test_a_real_chest_radiograph():
    """RG1: computed radiography, MONOCHROME1, 15 bit, with a window."""
    dataset, stored = theirs("RG1_UNCR.dcm")
    found = read_radiograph(local_file("RG1_UNCR.dcm"))
    centre, width = float(dataset.WindowCenter), float(dataset.WindowWidth)
    wanted = 255 - np.clip(((stored - (centre - 0.5)) / (width - 1) + 0.5) * 255, 0, 255)
    assert np.abs(found.pixels - wanted).max() <= 1
    assert (found.view, found.sex) == ("PA", "F")
    # The spine is denser than the lung beside it.
    assert found.pixels[800:1000, 900:960].mean() > found.pixels[500:700, 480:600].mean() + 40


@pytest.mark.parametrize("name", ["SC_rgb_jpeg_dcmtk.dcm", "SC_rgb_16bit.dcm", "examples_jpeg2k.dcm"])
def test_colours_become_luminance(name):
    dataset, stored = theirs(name)
    wanted = stored @ np.array([0.299, 0.587, 0.114])
    if dataset.BitsAllocated == 16:
        low, high = np.percentile(wanted, (0.1, 99.9))
        wanted = np.clip((wanted - low) / (high - low), 0, 1) * 255
    assert np.abs(read_radiograph(local_file(name)).pixels - wanted).max() <= 1


@pytest.mark.parametrize("name", ["SC_rgb_dcmtk_+eb+cy+n1.dcm", "SC_rgb_jpeg_dcmtk.dcm"])
def test_baseline_jpeg_in_grey_is_as_pydicom_decodes_it(name, tmp_path):
    """The fast path is for grey images, so the test drops the colours of a real encoder's file."""
    dataset, stored = theirs(name)
    grey = cv2.cvtColor(stored, cv2.COLOR_RGB2GRAY)
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.PixelData = pydicom.encaps.encapsulate([cv2.imencode(".jpg", grey)[1].tobytes()])
    dataset.save_as(tmp_path / "grey.dcm")
    wanted = pixel_array(pydicom.dcmread(tmp_path / "grey.dcm"))
    assert np.abs(read_radiograph(tmp_path / "grey.dcm").pixels.astype(int) - wanted).max() <= 2


def test_voi_and_modality_tables():
    dataset, stored = theirs("vlut_04.dcm")
    wanted = apply_voi_lut(stored, dataset) / (2 ** dataset.VOILUTSequence[0].LUTDescriptor[2] - 1) * 255
    assert np.abs(read_radiograph(local_file("vlut_04.dcm")).pixels - wanted).max() <= 1
    dataset, stored = theirs("mlut_18.dcm")
    table = dataset.ModalityLUTSequence[0]
    entries = np.asarray(table.LUTData) if not isinstance(table.LUTData, bytes) else np.frombuffer(table.LUTData, "<u2")
    values = entries[np.clip(stored.astype(int) - table.LUTDescriptor[1], 0, len(entries) - 1)].astype(float)
    low, high = np.percentile(values, (0.1, 99.9))
    found = read_radiograph(local_file("mlut_18.dcm")).pixels
    assert np.abs(found - np.clip((values - low) / (high - low), 0, 1) * 255).max() <= 1


def test_a_table_of_many_short_entries(tmp_path):
    """The table has 4096 entries of 8 bits, as in computed radiography; pydicom's own look-up wraps round here."""
    dataset = pydicom.dcmread(local_file("MR_small.dcm"))
    stored = np.arange(4096, dtype=np.uint16).reshape(64, 64)
    dataset.PixelData, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = stored.tobytes(), 12, 11, 0
    curve = np.round(255 * np.linspace(0, 1, 4096) ** 0.5).astype(int)
    item = Dataset()
    item.add_new("LUTDescriptor", "US", [4096, 0, 8])
    item.add_new("LUTData", "US", curve.tolist())
    dataset.VOILUTSequence = [item]
    dataset.save_as(tmp_path / "lut.dcm")
    np.testing.assert_array_equal(read_radiograph(tmp_path / "lut.dcm").pixels.flatten(), curve)


@pytest.mark.parametrize("kind", ["MONOCHROME1", "MONOCHROME2"])
def test_padding_is_black_and_takes_no_part(tmp_path, kind):
    dataset = pydicom.dcmread(local_file("MR_small.dcm"))
    stored = np.tile(np.linspace(1000, 2000, 64).astype(np.uint16), (64, 1))
    stored[:20] = 65535
    stored[20:25] = 65500
    dataset.PixelData, dataset.PixelRepresentation = stored.tobytes(), 0
    dataset.PhotometricInterpretation = kind
    for keyword in ("WindowCenter", "WindowWidth"):
        if keyword in dataset:
            delattr(dataset, keyword)
    dataset.add_new("PixelPaddingValue", "US", 65535)
    dataset.add_new("PixelPaddingRangeLimit", "US", 65500)
    dataset.save_as(tmp_path / "padded.dcm")
    pixels = read_radiograph(tmp_path / "padded.dcm").pixels
    assert pixels[:25].max() == 0
    assert (pixels[25:].min(), pixels[25:].max()) == (0, 255)


@pytest.mark.parametrize("name", ["MR_small_jp2klossless.dcm", "MR_small_jpeg_ls_lossless.dcm", "SC_rgb_jpeg_dcmtk.dcm",
                                  "MR_small_RLE.dcm", "SC_rgb_jpeg_gdcm.dcm"])  # fmt: skip
def test_a_compressed_image_larger_than_its_header_says_is_refused_before_decoding(name, tmp_path, monkeypatch):
    dataset = pydicom.dcmread(local_file(name))
    dataset.Rows, dataset.Columns = 8, 8
    dataset.save_as(tmp_path / "small.dcm")
    for decoder in ("simplejpeg.decode_jpeg", "imagecodecs.jpeg8_decode", "imagecodecs.jpegls_decode",
                    "imagecodecs.jpeg2k_decode"):  # fmt: skip
        monkeypatch.setattr(decoder, lambda *_, **__: pytest.fail("must not be decoded"))
    with pytest.raises(BadStudyError, match="measures|larger"):
        read_radiograph(tmp_path / "small.dcm")


def test_a_reason_never_quotes_the_header(tmp_path):
    """Parsers quote a value that they cannot use in their message, and the value may be a name."""
    dataset = pydicom.dcmread(local_file("MR_small.dcm"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset.add_new("WindowWidth", "LO", "ROSALIND")
        dataset.add_new("WindowCenter", "LO", "FRANKLIN")
        dataset.add_new("ViewPosition", "CS", "ROS")
        dataset.save_as(tmp_path / "named.dcm")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # None of the three values can be read: they count as unknown, and the study is still read.
        assert read_radiograph(tmp_path / "named.dcm").view == ""
    dataset.add_new("Rows", "LO", "ROSALIND")
    dataset.add_new("ViewPosition", "CS", "FRANKLIN")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset.save_as(tmp_path / "named.dcm")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(BadStudyError, match="Rows") as caught:
            read_radiograph(tmp_path / "named.dcm")
    assert "ROSALIND" not in "".join(traceback.format_exception(caught.value))
