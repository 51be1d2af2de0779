"""Headers as real files have them, and as an attacker writes them."""

import struct
import subprocess
import sys
import zlib

import numpy as np
import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from pipeline.dicom.radiograph import read_radiograph
from pipeline.errors import BadStudyError

PIXELS = np.arange(256, dtype=np.uint8).reshape(16, 16)


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian])
@pytest.mark.parametrize("kept", ["all", "no transfer syntax", "no preamble", "no meta header"])
def test_files_without_a_meta_header_or_a_preamble(make, syntax, kept, tmp_path):
    """dcmtk reads them too: the first elements tell what the meta header would say."""
    dataset = pydicom.dcmread(make(PIXELS))
    dataset.file_meta.TransferSyntaxUID = syntax
    path = tmp_path / "file.dcm"
    if syntax == ExplicitVRBigEndian:
        dataset.PixelData = PIXELS.tobytes()
        dataset["PixelData"].VR = "OB"
    pydicom.dcmwrite(path, dataset, implicit_vr=syntax.is_implicit_VR, little_endian=syntax.is_little_endian)
    content = path.read_bytes()
    if kept == "no preamble":
        content = content[132:]
    elif kept == "no meta header":
        group_length = struct.unpack_from("<I", content, 140)[0]
        content = content[144 + group_length :]
    elif kept == "no transfer syntax":
        content = _without_syntax(content)
    np.testing.assert_array_equal(read_radiograph(content).levels, PIXELS)


def _without_syntax(content):
    """Cut the element (0002,0010) out of the meta header and reduce its stated length."""
    start = content.index(b"\x02\x00\x10\x00UI")
    size = 8 + struct.unpack_from("<H", content, start + 6)[0]
    length = struct.unpack_from("<I", content, 140)[0] - size
    return content[:140] + struct.pack("<I", length) + content[144:start] + content[start + size :]


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"<!DOCTYPE html><html><body>404</body></html>", "an HTML page"),
        (b"GIF89a" + bytes(100), "a GIF image"),
        (b"", "an empty file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:aa\nsize 1\n", "a Git LFS pointer"),
    ],
)
def test_another_file_is_named(content, kind):
    with pytest.raises(BadStudyError, match=f"not a DICOM, PNG or JPEG file but {kind}"):
        read_radiograph(content)


@pytest.mark.parametrize(
    "element",
    [
        (0x00181164, "LO", "0,143\\0,143"), (0x00181164, "DS", "0.2"),
        (0x00181164, "LO", "unknown"), (0x00181164, "DS", ["0.1", "0.2", "0.3"]),
        (0x00181164, "DS", ""), (0x00181164, "DS", ["0", "0"]),
        (0x00101010, "LO", "forty"), (0x00101010, "UT", "x" * 100_000),
        (0x00185101, "LO", "AP\\PA"), (0x00185101, "UT", "a" * 100_000),
        (0x00100040, "LO", "U"), (0x00281050, "UT", "\\".join(["1"] * 50_000)),
        (0x00280008, "IS", ""), (0x00280103, "LO", "?"),
    ],
)  # fmt: skip
def test_an_optional_value_that_cannot_be_read_costs_nothing(make, element):
    found = read_radiograph(make(PIXELS, PixelSpacing=None, Extra=element))
    np.testing.assert_array_equal(found.levels, PIXELS)
    if element[0] == 0x00181164:
        assert np.isnan(found.spacing)
    if element[0] == 0x00101010:
        assert np.isnan(found.age)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(
    keyword=st.sampled_from(["PatientAge", "ImagerPixelSpacing", "WindowCenter", "WindowWidth", "VOILUTFunction",
                             "RescaleSlope", "RescaleIntercept", "PixelPaddingValue", "ViewPosition", "PatientSex"]),
    text=st.text(st.characters(codec="latin-1", exclude_categories=["Cc"]), max_size=30),
)  # fmt: skip
def test_no_optional_text_costs_the_study(make, keyword, text):
    element = (pydicom.datadict.tag_for_keyword(keyword), "LO", text)
    try:
        found = read_radiograph(make(PIXELS, Extra=element))
    except BadStudyError as error:
        # If the text happens to be a number, it may leave one grey level.
        assert "one value" in str(error) or "padding" in str(error)  # noqa: PT017
        return
    assert found.levels.shape == PIXELS.shape


def test_a_needed_number_must_be_one(make):
    for keyword in ("Rows", "Columns", "BitsAllocated", "BitsStored", "SamplesPerPixel"):
        tag = pydicom.datadict.tag_for_keyword(keyword)
        for value in ("many", "\\".join(["16"] * 1000), "-16", "16.5"):
            with pytest.raises(BadStudyError, match=f"{keyword} must be one whole number"):
                read_radiograph(make(PIXELS, Extra=(tag, "LO", value)))


def _many_items(content, count, length):
    """Insert a sequence of empty items before the pixel data."""
    place = content.index(b"\x28\x00\x02\x00US")
    items = b"\xfe\xff\x00\xe0\x00\x00\x00\x00" * count
    size, end = (len(items), b"") if length == "stated" else (0xFFFFFFFF, b"\xfe\xff\xdd\xe0\x00\x00\x00\x00")
    head = b"\x18\x00\x99\x99SQ\x00\x00" + struct.pack("<I", size)
    return content[:place] + head + items + end + content[place:]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("length", ["stated", "not stated"])
def test_millions_of_empty_items_are_not_parsed(make, tmp_path, length):
    path = tmp_path / "items.dcm"
    path.write_bytes(_many_items(make(PIXELS).read_bytes(), 4_000_000, length))
    code = (
        "import sys, pathlib, re\nfrom pipeline.dicom.radiograph import read_radiograph\n"
        "try: read_radiograph(pathlib.Path(sys.argv[1])); print('read')\n"
        "except ValueError as error: print(error)\n"
        "print(re.search(r'VmHWM:\\s+(\\d+)', pathlib.Path('/proc/self/status').read_text())[1])"
    )
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True, timeout=60)
    said, peak_kib = done.stdout.splitlines()
    # An element that is not needed is not parsed if its length is stated; otherwise, it must be walked through.
    assert said == ("read" if length == "stated" else "the header has too many elements")
    assert int(peak_kib) < 400 * 1024


def test_a_long_table_sequence_is_refused(make):
    content = _many_items(make(PIXELS).read_bytes(), 200_000, "stated")
    content = content.replace(b"\x18\x00\x99\x99SQ", b"\x28\x00\x10\x30SQ")  # VOI LUT Sequence
    with pytest.raises(BadStudyError, match="VOILUTSequence is longer"):
        read_radiograph(content)


def test_a_deflated_bomb_is_not_inflated(make):
    content = make(PIXELS).read_bytes()
    group_length = struct.unpack_from("<I", content, 140)[0]

    old = b"\x02\x00\x10\x00UI\x14\x001.2.840.10008.1.2.1\0"
    new = b"\x02\x00\x10\x00UI\x16\x001.2.840.10008.1.2.1.99"
    meta = content[: 144 + group_length].replace(old, new)
    meta = meta[:140] + struct.pack("<I", group_length + 2) + meta[144:]
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    bomb = b"".join(packer.compress(bytes(2**20)) for _ in range(512)) + packer.flush()
    with pytest.raises(BadStudyError, match="Deflated"):
        read_radiograph(meta + bomb)
