"""The search for DICOM files: their content decides, and all other entries are reported with their kind."""

import gzip
import os
import socket
import struct
import zipfile
from io import BytesIO
from pathlib import Path

import cv2
import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, ExplicitVRLittleEndian

from pipeline.data.annotations import IMAGES
from pipeline.data.discovery import file_kind, image_files, is_dicom, list_folder, study_name
from pipeline.errors import UserError


@pytest.fixture
def one(sample):
    """Return the content of a DICOM file."""
    return sorted((sample / IMAGES).iterdir())[0].read_bytes()


def png():
    return cv2.imencode(".png", np.zeros((9, 9), np.uint8))[1].tobytes()


def jpeg():
    return cv2.imencode(".jpg", np.zeros((9, 9), np.uint8))[1].tobytes()


def zipped():
    made = BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        archive.writestr("a", "b")
    return made.getvalue()


KINDS = {
    b"": "an empty file",
    b"\0" * 900: "a file of zero bytes only",
    b"  \n<!-- error --><!DOCTYPE html><html>": "an HTML page",
    b"\xef\xbb\xbf<HTML><body>": "an HTML page",
    b"<?xml version='1.0'?>\n<html xmlns=''>": "an HTML page",
    b"<?xml version='1.0'?><a/>": "an XML file",
    b'{"a": 1}': "a JSON file",
    png(): "a PNG image",
    jpeg(): "a JPEG image",
    zipped(): "a zip archive",
    gzip.compress(b"x"): "gzip-compressed data",
    b"%PDF-1.4": "a PDF document",
    struct.pack("<i", 348) + b"\0" * 340 + b"n+1\0": "a NIfTI image",
    b"version https://git-lfs.github.com/spec/v1\noid": "a Git LFS pointer (the file itself was never fetched)",
    b"patientId,x\n": "a text file",
    "größer".encode("latin-1"): "a text file",
    ("ü" * 700).encode()[:1024]: "a text file",
    "a,b".encode("utf-16"): "a text file",
    b"\x07\x01\x02junk": "a file of an unknown kind",
}


@pytest.mark.parametrize("head", KINDS)
def test_kinds(head):
    assert file_kind(head) == KINDS[head]
    assert not is_dicom(head)


@pytest.mark.parametrize("syntax", [(True, True), (False, True), (False, False)])
def test_headers_without_a_preamble(one, syntax):
    dataset = pydicom.dcmread(BytesIO(one))
    dataset.remove_private_tags()
    plain = pydicom.Dataset({element.tag: element for element in dataset if element.keyword != "PixelData"})
    made = BytesIO()
    pydicom.dcmwrite(made, plain, implicit_vr=syntax[0], little_endian=syntax[1], enforce_file_format=False)
    assert made.getvalue()[128:132] != b"DICM"
    assert is_dicom(made.getvalue())
    assert is_dicom(made.getvalue()[:64])


def test_a_meta_header_without_a_preamble(one):
    assert is_dicom(one)
    assert is_dicom(one[132:])
    assert file_kind(one[132:]) == "a DICOM file"


def test_files_of_every_kind_that_pydicom_has():
    missed = []
    for path in Path(get_testdata_file("MR_small.dcm")).parent.glob("*.dcm"):
        try:
            known = "SOPClassUID" in pydicom.dcmread(path, stop_before_pixels=True, force=True)
        except Exception:
            known = False
        if known and not is_dicom(path.read_bytes()[:1024]):
            missed.append(path.name)
    assert missed == []


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian])
def test_the_magic_is_enough(syntax):
    assert file_kind(b"\0" * 128 + b"DICM" + str(syntax).encode()) == "a DICOM file"
    assert file_kind(b"<html>".ljust(128) + b"DICM") == "a DICOM file"


def test_any_name_in_any_folder(tmp_path, one):
    names = ["a.DCM", "b.dcm", "c", "d.ima", "1.2.840.99", "sub/e.txt", "sub/deeper/f.jpg"]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(one)
    for name in (".hidden.dcm", "DICOMDIR", ".git/object"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(one)
    (tmp_path / "notes.txt").write_text("notes")
    (tmp_path / "page.dcm").write_text("<html>")
    assert image_files(tmp_path) == sorted(tmp_path / name for name in [*names, "page.dcm"])
    listing = list_folder(tmp_path)
    assert listing.files == sorted(tmp_path / name for name in names)
    assert listing.misnamed == {tmp_path / "page.dcm": "an HTML page"}
    assert listing.others == {tmp_path / "notes.txt": "a text file"}
    assert listing.odd == {}


def test_a_directory_of_a_dicom_medium_is_no_image(tmp_path):
    source = Path(get_testdata_file("DICOMDIR"))
    (tmp_path / "renamed.dcm").write_bytes(source.read_bytes())
    assert list_folder(tmp_path).files == []
    assert file_kind(source.read_bytes()[:1024]) == "a DICOM directory (DICOMDIR)"


def test_odd_entries_end_nothing_and_block_nothing(tmp_path, one, monkeypatch):
    (tmp_path / "a.dcm").write_bytes(one)
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/loop").symlink_to(tmp_path)
    os.mkfifo(tmp_path / "pipe.dcm")
    (tmp_path / "nowhere.dcm").symlink_to("gone")
    (tmp_path / "self.dcm").symlink_to("self.dcm")
    (tmp_path / "null.dcm").symlink_to("/dev/null")
    monkeypatch.chdir(tmp_path)  # the path of a socket must be short
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("socket.dcm")
        listing = list_folder(tmp_path)
    assert listing.files == [tmp_path / "a.dcm"]
    assert {path.relative_to(tmp_path).as_posix(): reason for path, reason in listing.odd.items()} == {
        "nowhere.dcm": "a file that cannot be read (No such file or directory)",
        "null.dcm": "a device",
        "pipe.dcm": "a pipe (FIFO)",
        "self.dcm": "a file that cannot be read (Too many levels of symbolic links)",
        "socket.dcm": "a socket",
        "sub/loop": "a link to a folder that is listed already",
    }


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_unreadable_entries(tmp_path, one):
    (tmp_path / "a.dcm").write_bytes(one)
    (tmp_path / "b.dcm").write_bytes(one)
    (tmp_path / "b.dcm").chmod(0)
    (tmp_path / "sub").mkdir(mode=0)
    listing = list_folder(tmp_path)
    (tmp_path / "sub").chmod(0o700)
    assert listing.files == [tmp_path / "a.dcm"]
    assert listing.odd == {
        tmp_path / "b.dcm": "a file that cannot be read (Permission denied)",
        tmp_path / "sub": "a folder that cannot be read (Permission denied)",
    }


def test_linked_files_and_folders_are_followed(tmp_path, one):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/x").write_bytes(one)
    (tmp_path / "in").mkdir()
    (tmp_path / "in/folder").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "in/file.dcm").symlink_to(tmp_path / "elsewhere/x")
    (tmp_path / "link").symlink_to(tmp_path / "in")
    assert image_files(tmp_path / "link") == [tmp_path / "link/file.dcm", tmp_path / "link/folder/x"]


def test_a_folder_without_any_says_what_is_there(tmp_path):
    with pytest.raises(UserError, match="no DICOM, PNG or JPEG files; the folder contains: nothing"):
        image_files(tmp_path)
    for number in range(3):
        (tmp_path / f"{number}.dcm").write_text("<html>sign in</html>")
    (tmp_path / "x.gif").write_bytes(b"GIF89a" + bytes(20))
    rule = "no DICOM, PNG or JPEG files; the folder contains: 3 times an HTML page, a GIF image"
    with pytest.raises(UserError, match=rule):
        image_files(tmp_path)


def test_pictures_count_where_there_is_no_dicom_file(tmp_path, one):
    (tmp_path / "a.png").write_bytes(png())
    (tmp_path / "b").write_bytes(jpeg())
    assert image_files(tmp_path) == [tmp_path / "a.png", tmp_path / "b"]
    (tmp_path / "c.dcm").write_bytes(one)
    (tmp_path / "d.dcm").write_bytes(png())
    assert image_files(tmp_path) == [tmp_path / "c.dcm", tmp_path / "d.dcm"]


def test_names_of_studies():
    names = {
        "a.dcm": "a",
        "b.DCM": "b",
        "c": "c",
        "1.2.840.99": "1.2.840.99",
        "1.2.3.dcm": "1.2.3",
        "d.png": "d",
        "e.JPG": "e",
        "x.v2": "x.v2",
    }
    assert {name: study_name(Path("in") / name) for name in names} == names
