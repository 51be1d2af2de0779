"""Each kind of compression gives the right pixels, or the study is refused."""

import random

import cv2
import imagecodecs
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.damage import cut, radiograph
from pipeline.dicom.decoding import decode
from pipeline.errors import BadStudyError
from tests.dicom.codestreams import LOSSLESS, SYNTAXES, compress, dataset, image

KINDS = sorted(SYNTAXES)


@pytest.mark.parametrize("kind", KINDS)
def test_a_sound_image_is_read(kind):
    pixels = image(kind)
    found = decode(dataset(kind, compress(kind, pixels), pixels.shape))
    assert found.dtype == pixels.dtype
    most = 0 if kind in LOSSLESS else 16
    assert np.abs(found.astype(int) - pixels).max() <= most


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fill", [b"", b"\0", b"\xff\xd9", b"\0" * 40, b"padding of some device"])
def test_bytes_behind_the_end_marker_do_not_matter(kind, fill):
    if kind == "rle":
        fill = b"\0" * min(len(fill), 2)
    pixels = image(kind)
    frame = compress(kind, pixels)
    wanted = decode(dataset(kind, frame, pixels.shape))
    frame += fill
    frame += b"\0" * (len(frame) % 2)
    np.testing.assert_array_equal(decode(dataset(kind, frame, pixels.shape)), wanted)


@pytest.mark.parametrize("kind", KINDS)
def test_a_frame_in_several_fragments(kind):
    pixels = image(kind)
    frame = compress(kind, pixels)
    made = dataset(kind, frame, pixels.shape)
    wanted = decode(made)
    third = len(frame) // 6 * 2
    parts = [frame[:third], frame[third : 2 * third], frame[2 * third :]]
    parts[2] += b"\0" * (len(parts[2]) % 2)
    item = b"".join(b"\xfe\xff\x00\xe0" + len(part).to_bytes(4, "little") + part for part in [b"", *parts])
    made.PixelData = item + b"\xfe\xff\xdd\xe0" + bytes(4)
    np.testing.assert_array_equal(decode(made), wanted)


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_cut_off_and_closed_is_refused(kind):
    pixels = image(kind)
    frame, rng = compress(kind, pixels), random.Random(0)
    for _ in range(20):
        with pytest.raises((BadStudyError, imagecodecs.JpeglsError)):
            decode(dataset(kind, cut(frame, rng), pixels.shape))


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_of_one_value_is_read_however_small(kind):
    pixels = np.full((800, 800), 0, image(kind).dtype)
    np.testing.assert_array_equal(decode(dataset(kind, compress(kind, pixels), pixels.shape)), pixels)


@pytest.mark.parametrize("kind", KINDS)
def test_another_size_than_the_header_says(kind):
    pixels = image(kind)
    frame = compress(kind, pixels)
    for shape in ((80, 160), (160, 320), (8000, 8000)):
        with pytest.raises(BadStudyError, match=r"measures|larger|truncated"):
            decode(dataset(kind, frame, shape))
    with pytest.raises(BadStudyError, match=r"measures|segments"):
        decode(dataset(kind, frame, (*pixels.shape, 3)))


@pytest.mark.parametrize("kind", ["lossless", "jpeg_ls", "jpeg_2000"])
def test_signed_samples_that_the_encoder_took_for_unsigned_ones(kind):
    signed = image(kind).astype(np.int16) - 2048
    frame = compress(kind, (signed & 4095).astype(np.uint16))
    found = decode(dataset(kind, frame, signed.shape, PixelRepresentation=1))
    assert found.dtype == np.int16
    if kind == "jpeg_ls":  # this encoder states 12 bits only if all of them are used
        found = ((found & 4095) ^ 2048) - 2048
    np.testing.assert_array_equal(found, signed)


def test_more_bits_than_the_header_has_room_for():
    pixels = image("lossless")
    with pytest.raises(BadStudyError, match="bits"):
        decode(dataset("lossless", compress("lossless", pixels), pixels.shape, BitsAllocated=8, BitsStored=8))


@pytest.mark.parametrize("predictor", range(1, 8))
def test_every_predictor_of_lossless_jpeg(predictor):
    pixels = radiograph(64, 16)
    frame = imagecodecs.jpeg8_encode(pixels, bitspersample=16, lossless=True, predictor=predictor)
    found = decode(dataset("lossless", frame, pixels.shape, BitsStored=16, HighBit=15))
    np.testing.assert_array_equal(found, pixels)


@pytest.mark.parametrize("kind", ["lossless", "jpeg_ls", "jpeg_2000"])
def test_colours_without_loss(kind):
    grey = image("baseline")
    colours = np.ascontiguousarray(np.stack([grey, 255 - grey, grey // 2], axis=-1))
    frame = compress(kind, colours)
    found = decode(dataset(kind, frame, colours.shape, BitsAllocated=8, BitsStored=8, HighBit=7))
    np.testing.assert_array_equal(found, colours)


@settings(max_examples=60)
@given(st.data())
def test_uncompressed_colours_in_any_layout(data):
    """Colours by plane or by pixel, in either byte order, with 8 or 16 bits, are read the same."""
    rows, columns = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 9))
    width, planar, big = data.draw(st.sampled_from([1, 2])), data.draw(st.booleans()), data.draw(st.booleans())
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    colours = rng.integers(0, 256**width, (rows, columns, 3)).astype(f"u{width}")
    stored = (colours.transpose(2, 0, 1) if planar else colours).astype(f"{'>' if big else '<'}u{width}").tobytes()
    header = {"BitsAllocated": 8 * width, "BitsStored": 8 * width, "PlanarConfiguration": int(planar)}
    made = dataset("native", stored + b"\0" * (len(stored) % 2), colours.shape, **header)
    made["PixelData"].VR = "OB" if width == 1 else "OW"
    made.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.2" if big else "1.2.840.10008.1.2.1"
    found = decode(made)
    assert found.dtype.isnative
    np.testing.assert_array_equal(found, colours)


def test_uncompressed_ycc():
    """Subsampled or not, YCbCr is converted as OpenCV does it."""
    rng = np.random.default_rng(0)
    ycc = rng.integers(0, 256, (6, 8, 3)).astype(np.uint8)
    ycc[:, 1::2, 1:] = ycc[:, ::2, 1:]
    wanted = cv2.cvtColor(ycc[..., [0, 2, 1]], cv2.COLOR_YCrCb2RGB)
    header = {"BitsAllocated": 8, "BitsStored": 8}
    full = dataset("native", ycc.tobytes(), ycc.shape, PhotometricInterpretation="YBR_FULL", **header)
    np.testing.assert_array_equal(decode(full), wanted)
    pairs = np.stack([ycc[:, ::2, 0], ycc[:, 1::2, 0], ycc[:, ::2, 1], ycc[:, ::2, 2]], axis=-1)
    halved = dataset("native", pairs.tobytes(), ycc.shape, PhotometricInterpretation="YBR_FULL_422", **header)
    np.testing.assert_array_equal(decode(halved), wanted)


@pytest.mark.parametrize("share", [0.5, 0.999, 2])
def test_uncompressed_data_of_another_length(share):
    pixels = image("lossless")
    with pytest.raises(BadStudyError, match="bytes of pixel data"):
        decode(dataset("native", (2 * pixels.tobytes())[: int(share * pixels.nbytes)], pixels.shape))
