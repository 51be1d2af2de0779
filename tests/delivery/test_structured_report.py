"""Structured reports of images whose headers are as found in practice, or hostile."""

import io
import logging
import stat
import warnings

import numpy as np
import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom.dataelem import RawDataElement
from pydicom.tag import Tag

from pipeline.data.annotations import IMAGES
from pipeline.delivery.batch import Study
from pipeline.delivery.structured_report import ReportWriter
from pipeline.dicom.radiograph import read_radiograph
from tests.delivery.predictions import prediction

FOUND = prediction(np.array([[10.0, 20, 30, 60]]), np.array([0.9]), 0.9)
SECRET = "Sekret"


def put(dataset, keyword, content, vr=None):
    """Put bytes into the data set as they are; pydicom would not write them from a value."""
    tag = Tag(keyword)
    content += b" " * (len(content) % 2)
    vr = vr or pydicom.datadict.dictionary_VR(tag)
    dataset._dict[tag] = RawDataElement(tag, vr, len(content), content, 0, False, True)


@pytest.fixture(scope="module")
def image(sample):
    return sorted((sample / IMAGES).glob("*.dcm"))[0]


@pytest.fixture
def report_on(image, tmp_path, caplog):
    """Make a file of the image, changed by a function, and its report; return the writer and the report."""
    radiograph = read_radiograph(image)

    def make(change, name="a.dcm"):
        dataset = pydicom.dcmread(image)
        change(dataset)
        path = tmp_path / name
        with warnings.catch_warnings(), caplog.at_level(logging.CRITICAL, "pydicom"):
            warnings.simplefilter("ignore")  # pydicom warns while the test writes values that no program should write
            dataset.save_as(path)
        writer = ReportWriter(tmp_path / "sr")
        writer.write(Study(path, radiograph, FOUND))
        made = tmp_path / "sr" / name
        return writer, pydicom.dcmread(made) if writer.written else None

    return make


@pytest.fixture(autouse=True)
def nothing_is_said(caplog, capfd):
    """Require silent libraries, and no secret in any output: warnings quote values, and are errors here."""
    caplog.set_level(logging.DEBUG)
    yield
    said = caplog.text + "".join(capfd.readouterr())
    assert SECRET not in said
    assert not [record for record in caplog.records if record.name.startswith(("pydicom", "highdicom"))]


@pytest.mark.parametrize(
    ("keyword", "content", "kept"),
    [
        ("PatientSex", b"U", ""),
        ("PatientSex", b"female", ""),
        ("PatientSex", b"F", "F"),
        ("PatientBirthDate", b"1961-05-17", ""),
        ("PatientBirthDate", b"19610230", ""),
        ("PatientBirthDate", b"17.05.1961", ""),
        ("PatientBirthDate", b"19610517", "19610517"),
        ("StudyDate", b"2024-01-01", ""),
        ("StudyTime", b"12:30", ""),
        ("StudyTime", b"250000", ""),
        ("StudyTime", b"123059.123456", "123059.123456"),
        ("PatientID", b"a" * 65, ""),
        ("PatientID", b"a\\b", ""),
        ("PatientID", b"a\x1b[31mb", ""),
        ("AccessionNumber", b"12345678901234567", ""),
        ("StudyID", b"7", "7"),
        ("PatientName", b"Sekret^Sophie", "Sekret^Sophie"),
        ("PatientName", b"a^b=c^d=e^f=g^h", ""),
        ("PatientName", b"Sekret\r\nSekret", ""),
        ("ReferringPhysicianName", b"Dr. Sekret", "Dr. Sekret"),
        ("PatientAge", b"43", "043Y"),
        ("PatientAge", b"043Y", "043Y"),
        ("PatientAge", b"forty", None),
        ("StudyDescription", b"\xff\xfe", None),
    ],
)
def test_an_optional_value_that_is_invalid_stays_behind(report_on, keyword, content, kept):
    writer, report = report_on(lambda dataset: put(dataset, keyword, content))
    assert writer.problems == {}
    found = report.get(keyword)
    assert kept == (None if found is None else str(found))


def test_an_absent_optional_value_is_empty(report_on):
    def remove(dataset):
        for keyword in ("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime"):
            if keyword in dataset:
                delattr(dataset, keyword)

    _, report = report_on(remove)
    assert str(report.PatientName) == report.PatientID == report.PatientSex == report.StudyTime == ""


@pytest.mark.parametrize(
    ("charset", "name", "kept"),
    [
        (b"ISO_IR 100", "Müller^Jörg".encode("latin-1"), "Müller^Jörg"),
        (b"ISO_IR 192", "Müller^Jörg".encode(), "Müller^Jörg"),
        (b"ISO 2022 IR 6\\ISO 2022 IR 87", b"Yamada^Tarou=\x1b$B;3ED\x1b(B^\x1b$BB@O:\x1b(B", "Yamada^Tarou=山田^太郎"),
        (b"ISO_IR 192", "Müller".encode("latin-1"), ""),
        (b"KOI8-R", "Müller".encode("latin-1"), ""),
        (b"\xff\xfe", b"Sekret", "Sekret"),
        (b"", "Müller".encode("latin-1"), ""),
        (b"KOI8-R", b"Sekret", "Sekret"),
    ],
)
def test_names_in_any_character_set(image, tmp_path, charset, name, kept):
    path = tmp_path / "a.dcm"
    path.write_bytes(with_name(image, charset, name))
    writer = ReportWriter(tmp_path / "sr")
    writer.write(Study(path, read_radiograph(path), FOUND))
    report = pydicom.dcmread(tmp_path / "sr/a.dcm")
    assert report.SpecificCharacterSet == "ISO_IR 192"
    assert str(report.PatientName) == kept


def with_name(image, charset, name):
    """Return the image's file with these bytes as they are; pydicom would write names in the character set it knows."""
    dataset = pydicom.dcmread(image)
    if "SpecificCharacterSet" in dataset:
        del dataset.SpecificCharacterSet
    dataset.PatientName = "PLACE^HOLDER"
    file = io.BytesIO()
    dataset.save_as(file)
    content = file.getvalue().replace(
        element(b"\x10\x00\x10\x00PN", b"PLACE^HOLDER"), element(b"\x10\x00\x10\x00PN", name)
    )
    start = 128 + 4 + 12 + dataset.file_meta.FileMetaInformationGroupLength
    return content[:start] + element(b"\x08\x00\x05\x00CS", charset) + content[start:]


def element(head, value):
    value += b" " * (len(value) % 2)
    return head + len(value).to_bytes(2, "little") + value


@pytest.mark.parametrize("keyword", ["StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID"])
def test_without_its_ids_an_image_has_no_report(report_on, keyword):
    writer, report = report_on(lambda dataset: dataset.__delattr__(keyword))
    assert report is None
    assert list(writer.problems.values()) == [f"{keyword} is missing"]
    for content in (b"Sekret", b"1.2..3", b"1" * 66, b"1.2\\1.3"):
        writer, report = report_on(lambda dataset, content=content: put(dataset, keyword, content))
        assert report is None
        assert next(iter(writer.problems.values())) in (f"{keyword} is not a UID", f"{keyword} is missing")
    writer, _ = report_on(lambda dataset: put(dataset, "SOPClassUID", b"1.2.3.4"))
    assert list(writer.problems.values()) == ["SOPClassUID is not one that the standard defines"]


def test_only_the_owner_reads_reports(report_on, tmp_path):
    report_on(lambda dataset: None)
    (tmp_path / "sr/a.dcm").chmod(0o666)
    report_on(lambda dataset: None)
    assert stat.S_IMODE((tmp_path / "sr/a.dcm").stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "sr").stat().st_mode) == 0o700


def test_a_file_that_is_gone_or_another_one_now_has_no_report(image, sample, tmp_path):
    radiograph, path = read_radiograph(image), tmp_path / "a.dcm"
    writer = ReportWriter(tmp_path / "sr")
    writer.write(Study(path, radiograph, FOUND))
    assert writer.problems == {path: "the file cannot be read again (No such file or directory)"}
    dataset = pydicom.dcmread(image)
    dataset.Rows += 1
    dataset.save_as(path)
    writer.write(Study(path, radiograph, FOUND))
    assert writer.problems == {path: "the file has changed since it was read"}
    dataset = pydicom.dcmread(image)
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
    del dataset.PixelData
    dataset.save_as(path)
    writer.write(Study(path, radiograph, FOUND))
    assert writer.problems == {path: "the file has changed since it was read"}
    assert writer.written == 0
    assert not (tmp_path / "sr").exists()


KEYWORDS = [
    "SpecificCharacterSet", "PatientID", "PatientName", "PatientBirthDate", "PatientSex", "PatientAge", "StudyID",
    "AccessionNumber", "StudyDate", "StudyTime", "StudyDescription", "ReferringPhysicianName", "StudyInstanceUID",
    "SeriesInstanceUID", "SOPClassUID", "SOPInstanceUID",
]  # fmt: skip


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(st.sampled_from(KEYWORDS), st.binary(max_size=70), min_size=1, max_size=6))
def test_whatever_the_header_holds_there_is_a_valid_report_or_a_reason(report_on, values):
    def change(dataset):
        for keyword, content in values.items():
            # pydicom cannot write a data set whose character set name contains a zero byte.
            put(dataset, keyword, content.replace(b"\0", b" ") if keyword == "SpecificCharacterSet" else content)

    writer, report = report_on(change)
    assert writer.written + len(writer.problems) == 1
    if report is not None:
        with pydicom.config.strict_reading():
            assert str(report)
    for reason in writer.problems.values():
        assert reason.split()[0] in {*KEYWORDS, "the"}
        assert reason.isprintable()
