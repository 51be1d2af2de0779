"""The content of a JPEG image is checked before a decoder gets it."""

import struct

import cv2
import imagecodecs
import numpy as np
import pytest

from benchmarks.damage import radiograph
from pipeline.dicom.codestream import read_jpeg, rebuilt
from pipeline.dicom.huffman import require_sound_codes
from pipeline.dicom.jpeg import decode_jpeg
from pipeline.errors import BadStudyError
from tests.dicom.codestreams import compress, image


def read(frame, shape=(160, 160, 1), bits=8, is_ycc=False):
    return decode_jpeg(frame, shape, bits=bits, is_ycc=is_ycc)[0]


def segments(frame):
    """Return (marker, start, end) of each segment; the scan's data begin at the last end."""
    place, found = 2, []
    while not found or found[-1][0] != 0xDA:
        end = place + 2 + int.from_bytes(frame[place + 2 : place + 4], "big")
        found.append((frame[place + 1], place, end))
        place = end
    return found


def test_a_warning_of_libjpeg_refuses_the_image():
    frame = bytearray(compress("baseline", image("baseline")))
    start = segments(frame)[-1][2]
    del frame[start + 200 : start + 230]
    assert cv2.imdecode(np.frombuffer(frame, np.uint8), cv2.IMREAD_GRAYSCALE) is not None
    with pytest.raises(BadStudyError, match="Corrupt JPEG data"):
        read(bytes(frame))


def test_a_second_frame_header_or_image_is_refused():
    frame = compress("baseline", image("baseline"))
    _, start, end = next(part for part in segments(frame) if part[0] == 0xC0)
    with pytest.raises(BadStudyError, match="one image"):
        read(frame[:end] + frame[start:end] + frame[end:])
    with pytest.raises(BadStudyError, match="one image"):
        read(frame + frame)


def test_ten_thousand_scans_are_refused():
    frame = compress("progressive", image("progressive"))
    _, start, end = segments(frame)[-1]
    scan = frame[start:end] + b"\x55\x55"
    with pytest.raises(BadStudyError, match="scans"):
        read(frame[:-2] + 10_000 * scan + b"\xff\xd9")
    frame = compress("baseline", image("baseline"))
    again = frame[segments(frame)[-1][1] : -2]
    with pytest.raises(BadStudyError, match="each component"):
        read(frame[:-2] + again + b"\xff\xd9")


def test_a_progressive_image_cut_between_two_scans_is_refused():
    frame = compress("progressive", image("progressive"))
    scans = [place for place in range(len(frame)) if frame[place : place + 2] == b"\xff\xda"]
    assert len(scans) > 3
    for place in scans[1:]:
        with pytest.raises(BadStudyError, match="truncated"):
            read(frame[:place] + b"\xff\xd9")


@pytest.mark.parametrize("kind", ["baseline", "progressive", "extended", "lossless"])
def test_a_small_image_that_claims_to_be_large_is_refused(kind):
    frame = bytearray(compress(kind, image(kind)))
    start = next(start for marker, start, _ in segments(frame) if marker in (0xC0, 0xC1, 0xC2, 0xC3))
    struct.pack_into(">HH", frame, start + 5, 8000, 8000)
    with pytest.raises(BadStudyError, match=r"truncated|damaged"):
        read(bytes(frame), (8000, 8000, 1), bits=12)


@pytest.mark.parametrize("subsampled", [False, True])
def test_the_header_or_the_image_says_what_its_colours_are(subsampled):
    grey = image("baseline")
    colours = np.ascontiguousarray(np.stack([grey, 255 - grey, grey // 2], axis=-1))
    sampling = (2, 2) if subsampled else (1, 1)
    frame = imagecodecs.jpeg8_encode(colours, level=98, subsampling=sampling)
    size = colours.shape
    assert frame[6:10] == b"JFIF"
    wanted = cv2.imdecode(np.frombuffer(frame, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
    for is_ycc in (True, False):
        # A JFIF image is YCbCr, no matter what the header says.
        assert np.abs(read(frame, size, is_ycc=is_ycc).astype(int) - wanted).max() <= 2
    bare = frame[:2] + frame[20:]
    assert np.abs(read(bare, size, is_ycc=True).astype(int) - wanted).max() <= 2
    ycc = cv2.cvtColor(wanted, cv2.COLOR_RGB2YCrCb)[..., [0, 2, 1]]
    assert np.abs(read(bare, size, is_ycc=False).astype(int) - ycc)[:, :, 0].max() <= 4


@pytest.mark.parametrize(("bits", "lossless"), [(12, False), (12, True), (16, True)])
@pytest.mark.parametrize("shape", [(1, 1), (7, 9), (64, 65)])
def test_the_codes_of_a_sound_image_end_with_its_last_sample(bits, lossless, shape):
    pixels = np.ascontiguousarray(radiograph(80, bits)[: shape[0], : shape[1]])
    options = {"lossless": True, "predictor": 1} if lossless else {}
    frame = imagecodecs.jpeg8_encode(pixels, bitspersample=bits, **options)
    require_sound_codes(read_jpeg(frame))
    start = segments(frame)[-1][2]
    for wrong in (frame[:-3] + b"\xff\xd9", frame[:-2] + b"\x55\x55\xff\xd9", frame[:start] + b"\xff\xd9"):
        with pytest.raises(BadStudyError, match=r"truncated|damaged"):
            require_sound_codes(read_jpeg(wrong))


def test_codes_across_chunks(monkeypatch):
    """The codes of a large image are walked in chunks."""
    monkeypatch.setattr("pipeline.dicom.huffman._CHUNK_BYTES", 64)
    for kind in ("extended", "lossless"):
        frame = compress(kind, image(kind))
        require_sound_codes(read_jpeg(frame))
        with pytest.raises(BadStudyError):
            require_sound_codes(read_jpeg(frame[:-40] + b"\xff\xd9"))


def test_a_sequential_scan_of_any_selection_is_read():
    """Some encoders write 0, 0 as the spectral selection, where the standard says 0, 63."""
    frame = bytearray(compress("extended", image("extended")))
    end = segments(frame)[-1][2]
    wanted = read(bytes(frame), bits=12)
    frame[end - 3 : end] = b"\0\0\0"
    np.testing.assert_array_equal(read(bytes(frame), bits=12), wanted)


def test_only_what_was_walked_reaches_the_decoder():
    frame = compress("baseline", image("baseline"))
    noted = frame[:2] + b"\xff\xfe\x00\x06note" + frame[2:]
    assert b"note" not in rebuilt(read_jpeg(noted), read_jpeg(noted).segments, is_ycc=False)
    np.testing.assert_array_equal(read(noted), read(frame))
