"""Fixtures that write DICOM files with any pixels and any header."""

import warnings

import pydicom
import pytest
from pydicom.uid import ExplicitVRLittleEndian

from pipeline.data.annotations import IMAGES


@pytest.fixture(scope="session")
def study(sample):
    return sorted((sample / IMAGES).glob("*.dcm"))[0]


@pytest.fixture
def make(study, tmp_path):
    """Return a function that writes a file with the given pixels and header values."""

    def build(pixels, **header):
        dataset = pydicom.dcmread(study)
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        dataset.Rows, dataset.Columns = pixels.shape
        dataset.BitsAllocated = pixels.dtype.itemsize * 8
        dataset.BitsStored = dataset.BitsAllocated
        dataset.HighBit = dataset.BitsStored - 1
        dataset.PixelData = pixels.tobytes()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # tests need values that the standard forbids
            for key, value in header.items():
                if isinstance(value, tuple):
                    dataset.add_new(*value)  # tag, value representation, value
                elif value is None:
                    dataset.pop(key, None)
                else:
                    setattr(dataset, key, value)
            dataset.save_as(tmp_path / "made.dcm")
        return tmp_path / "made.dcm"

    return build
