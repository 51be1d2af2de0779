"""PNG and JPEG files as radiographs: the pixels that other decoders see, and a refusal of all that is damaged."""

import io
import struct
import zlib

import cv2
import numpy as np
import pydicom
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pipeline.dicom.radiograph import read_radiograph
from pipeline.errors import BadStudyError

RNG = np.random.default_rng(0)
GREY = np.asarray(cv2.GaussianBlur(RNG.integers(0, 256, (40, 31), np.uint8), (5, 5), 2), np.uint8)
COLOUR = np.stack([GREY, GREY[::-1], GREY[:, ::-1]], -1)
DEEP = GREY.astype(np.uint16) * 14 + 100  # 12 bits


def packed(image, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, kind, **{key: value for key, value in options.items() if value is not None})
    return file.getvalue()


def opaque(mode):
    image = Image.fromarray(COLOUR).convert(mode)
    image.putalpha(255)
    return image


@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        (packed(Image.fromarray(GREY)), GREY),
        (packed(Image.fromarray(GREY > 90)), np.where(GREY > 90, 255, 0)),
        (packed(opaque("L")), np.asarray(Image.fromarray(COLOUR).convert("L"))),
        (packed(Image.fromarray(COLOUR)), cv2.cvtColor(COLOUR, cv2.COLOR_RGB2GRAY)),
        (packed(opaque("RGB")), cv2.cvtColor(COLOUR, cv2.COLOR_RGB2GRAY)),
        (packed(Image.fromarray(GREY).convert("P")), GREY),
        (packed(Image.fromarray(GREY), bits=8, optimize=True), GREY),
    ],
)
def test_png_images_of_8_bits_stay_as_they_are(content, wanted):
    found = read_radiograph(content)
    assert found.levels.dtype == np.uint8
    np.testing.assert_array_equal(found.levels, wanted)
    assert (found.view, found.sex, str(found.age), str(found.spacing)) == ("", "", "nan", "nan")


@pytest.mark.parametrize("bits", [2, 4])
def test_samples_of_few_bits_span_all_grey_levels(bits):
    top = 2**bits - 1
    values = (GREY.astype(int) * top // 255).astype(np.uint8)
    rows = b"".join(b"\0" + np.packbits(np.unpackbits(row[:, None], axis=1)[:, -bits:]).tobytes() for row in values)
    content = png(struct.pack(">IIBBBBB", values.shape[1], values.shape[0], bits, 0, 0, 0, 0), rows)
    np.testing.assert_array_equal(read_radiograph(content).levels, values.astype(int) * 255 // top)


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(header, rows, *more):
    parts = [chunk(b"IHDR", header), *more, chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def dicom(words, bits):
    """Return a DICOM file of the same words, without a window."""
    file = io.BytesIO()
    data = pydicom.Dataset()
    data.file_meta = pydicom.dataset.FileMetaDataset()
    data.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    data.SOPClassUID, data.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.1.1", "1.2.3"
    data.Rows, data.Columns = words.shape
    data.SamplesPerPixel, data.PhotometricInterpretation, data.PixelRepresentation = 1, "MONOCHROME2", 0
    data.BitsAllocated = data.BitsStored = 8 * words.itemsize
    data.BitsStored, data.HighBit = bits, bits - 1
    data.PixelData = words.tobytes()
    data.save_as(file, enforce_file_format=True)
    return file.getvalue()


@pytest.mark.parametrize(("words", "bits"), [(DEEP, 16), (GREY, 8)])
def test_a_png_gives_what_a_dicom_file_of_its_values_gives(words, bits):
    found, wanted = read_radiograph(packed(Image.fromarray(words))), read_radiograph(dicom(words, bits))
    assert found.levels.dtype == wanted.levels.dtype
    np.testing.assert_array_equal(found.levels, wanted.levels)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0, "quality": 60}])
def test_jpeg_images(options):
    grey = packed(Image.fromarray(GREY), "JPEG", **{key: options[key] for key in options if key != "subsampling"})
    np.testing.assert_array_equal(read_radiograph(grey).levels, np.asarray(Image.open(io.BytesIO(grey))))
    colour = packed(Image.fromarray(COLOUR), "JPEG", **options)
    wanted = cv2.cvtColor(np.asarray(Image.open(io.BytesIO(colour)).convert("RGB")), cv2.COLOR_RGB2GRAY)
    assert np.abs(read_radiograph(colour).levels.astype(int) - wanted).max() <= 2


def turned(orientation):
    exif = Image.Exif()
    if orientation:
        exif[0x0112] = orientation
    return packed(Image.fromarray(GREY), "JPEG", exif=exif)


def transparent():
    image = Image.fromarray(COLOUR).convert("RGBA")
    image.putpixel((3, 3), (1, 2, 3, 0))
    return packed(image)


def huge():
    return png(struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0), b"")


@pytest.mark.parametrize(
    ("content", "rule"),
    [
        (transparent(), "transparent pixels"),
        (turned(6), "orientation 6"),
        (huge(), "60000 x 60000 pixels; at most"),
        (png(struct.pack(">IIBBBBB", 0, 9, 8, 0, 0, 0, 0), b""), "9 x 0 pixels: no image"),
        (packed(Image.new("L", (20, 20), 7)), "all pixels have one value"),
        (packed(Image.fromarray(GREY), save_all=True, append_images=[Image.fromarray(GREY[::-1])]), "animated"),
        (packed(Image.fromarray(COLOUR).convert("CMYK"), "JPEG"), "4 components"),
        (packed(Image.fromarray(GREY))[:-12], "truncated"),
        (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", bytes(13)) + chunk(b"IEND", b""), "its pixels or its end is missing"),
        (b"\x89PNG\r\n\x1a\n", "truncated"),
    ],
)
def test_what_is_no_single_radiograph_is_refused(content, rule):
    with pytest.raises(BadStudyError, match=rule):
        read_radiograph(content)


def test_an_upright_jpeg_may_say_so():
    np.testing.assert_array_equal(read_radiograph(turned(1)).levels, read_radiograph(turned(None)).levels)


@pytest.mark.parametrize("content", [packed(Image.fromarray(DEEP)), packed(Image.fromarray(GREY), "JPEG")])
@given(data=st.data())
def test_no_file_that_is_cut_off_becomes_an_image(content, data):
    with pytest.raises(BadStudyError):
        read_radiograph(content[: data.draw(st.integers(0, len(content) - 3))])


@given(st.data())
def test_a_damaged_png_is_refused(data):
    content = bytearray(packed(Image.fromarray(DEEP)))
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] ^= data.draw(st.integers(1, 255))
    with pytest.raises(BadStudyError):
        read_radiograph(bytes(content))
