"""A JPEG 2000 codestream is walked to its end: no part is missing, and none asks for more than its pixels need."""

import io
import struct

import imagecodecs
import numpy as np
import pytest
from PIL import Image

from benchmarks.damage import radiograph
from pipeline.dicom.jpeg2000 import decode_jpeg_2000
from pipeline.errors import BadStudyError
from tests.dicom.codestreams import image

SIZE = (160, 160, 1)


def stream(**options):
    return imagecodecs.jpeg2k_encode(image("jpeg_2000"), codecformat="J2K", **{"reversible": True, **options})


def pillow_stream(pixels=None, **options):
    """Encode with Pillow, which has options that imagecodecs lacks: tiles, precincts, progression orders."""
    file = io.BytesIO()
    Image.fromarray(image("jpeg_2000") if pixels is None else pixels).save(file, "JPEG2000", no_jp2=True, **options)
    return file.getvalue()


def jp2(codestream, *boxes):
    def box(kind, body):
        return struct.pack(">I", 8 + len(body)) + kind + body

    head = box(b"jP  ", b"\r\n\x87\n") + box(b"ftyp", b"jp2 \0\0\0\0jp2 ") + b"".join(boxes)
    return head + box(b"jp2c", codestream)


@pytest.mark.parametrize(
    "options",
    [{}, {"resolutions": 1}, {"resolutions": 3}, {"reversible": False, "level": 90}, {"bitspersample": 12}],
)
def test_a_whole_codestream_is_read(options):
    frame = stream(**options)
    found, precision = decode_jpeg_2000(frame, SIZE)
    assert precision == options.get("bitspersample", 16)
    np.testing.assert_array_equal(found, imagecodecs.jpeg2k_decode(frame))
    np.testing.assert_array_equal(decode_jpeg_2000(jp2(frame), SIZE)[0], found)


@pytest.mark.parametrize("order", ["LRCP", "RLCP", "RPCL", "PCRL", "CPRL"])
@pytest.mark.parametrize(
    "options",
    [{"tile_size": (64, 48)}, {"tile_size": (160, 33), "num_resolutions": 4}, {"codeblock_size": (16, 32)},
     {"precinct_size": (64, 64), "codeblock_size": (32, 32)}, {"quality_layers": [40, 20, 0], "quality_mode": "rates"},
     {"irreversible": True, "tile_size": (100, 100), "precinct_size": (32, 32), "codeblock_size": (16, 16)}],
)  # fmt: skip
def test_tiles_precincts_and_progression_orders(options, order):
    frame = pillow_stream(progression=order, **options)
    found, _ = decode_jpeg_2000(frame, SIZE)
    np.testing.assert_array_equal(found, imagecodecs.jpeg2k_decode(frame))
    np.testing.assert_array_equal(decode_jpeg_2000(jp2(frame), SIZE)[0], found)


@pytest.mark.parametrize("shape", [(1, 1), (1, 70), (33, 2), (65, 129), (300, 17)])
def test_layers_and_any_size(shape):
    frame = pillow_stream(radiograph(300, 12)[: shape[0], : shape[1]], quality_layers=[8, 4, 2])
    found, _ = decode_jpeg_2000(frame, (*shape, 1))
    np.testing.assert_array_equal(found, imagecodecs.jpeg2k_decode(frame))


def test_colours():
    grey = image("baseline")
    colours = np.ascontiguousarray(np.stack([grey, 255 - grey, grey // 2], axis=-1))
    frame = imagecodecs.jpeg2k_encode(colours, codecformat="J2K", reversible=True, mct=True)
    np.testing.assert_array_equal(decode_jpeg_2000(frame, colours.shape)[0], colours)


def test_a_tile_that_ends_between_two_packets_is_refused():
    """OpenJPEG treats missing packets as empty ones, and reports nothing."""
    frame = bytearray(stream())
    start = frame.index(b"\xff\x90")
    for size in range(len(frame) // 3, len(frame) - 20, 2000):
        cut = frame[: start + size] + b"\xff\xd9"
        struct.pack_into(">I", cut, start + 6, size)
        with pytest.raises(BadStudyError, match="truncated"):
            decode_jpeg_2000(bytes(cut), SIZE)
    longer = frame[:-2] + bytes(8) + b"\xff\xd9"
    struct.pack_into(">I", longer, start + 6, len(longer) - start - 2)
    with pytest.raises(BadStudyError, match="behind the last packet"):
        decode_jpeg_2000(bytes(longer), SIZE)


def test_a_small_codestream_that_claims_to_be_large_is_refused():
    frame = bytearray(stream())
    struct.pack_into(">2I", frame, 8, 8000, 8000)
    with pytest.raises(BadStudyError, match="tiles"):
        decode_jpeg_2000(bytes(frame), (8000, 8000, 1))
    struct.pack_into(">2I", frame, 24, 8000, 8000)
    with pytest.raises(BadStudyError):
        decode_jpeg_2000(bytes(frame), (8000, 8000, 1))


def test_missing_and_repeated_tiles_are_refused():
    frame = pillow_stream(tile_size=(64, 64))
    parts = frame[:-2].split(b"\xff\x90\x00\x0a")
    assert len(parts) == 10
    for wrong in (parts[:-1], [*parts[:4], *parts[5:]], [*parts, parts[-1]]):
        with pytest.raises(BadStudyError, match="tile"):
            decode_jpeg_2000(b"\xff\x90\x00\x0a".join(wrong) + b"\xff\xd9", SIZE)


def test_more_tiles_code_blocks_or_packets_than_pixels_need():
    frame = bytearray(stream())
    tiny = bytearray(frame)
    struct.pack_into(">2I", tiny, 24, 1, 1)
    with pytest.raises(BadStudyError, match="tiles"):
        decode_jpeg_2000(bytes(tiny), SIZE)
    style = frame.index(b"\xff\x52")
    layers = bytearray(frame)
    struct.pack_into(">H", layers, style + 6, 65535)
    with pytest.raises(BadStudyError, match="fewer bytes than packets"):
        decode_jpeg_2000(bytes(layers), SIZE)
    blocks = bytearray(imagecodecs.jpeg2k_encode(np.zeros((4000, 4000), np.uint8), codecformat="J2K", reversible=True))
    style = blocks.index(b"\xff\x52")
    blocks[style + 10 : style + 12] = b"\0\0"  # code blocks of 4 x 4 pixels
    with pytest.raises(BadStudyError, match="code blocks"):
        decode_jpeg_2000(bytes(blocks), (4000, 4000, 1))


def test_the_size_that_the_decoder_reads_is_checked():
    """A box before the codestream holds the header of another codestream."""
    huge = bytearray(stream())
    struct.pack_into(">2I", huge, 8, 60000, 60000)
    decoy = struct.pack(">I4s", 8 + 60, b"free") + stream()[:60]
    with pytest.raises(BadStudyError, match="measures"):
        decode_jpeg_2000(jp2(bytes(huge), decoy), SIZE)


@pytest.mark.parametrize("length", [0, 1, 2, 7, 2**31])
def test_boxes_that_lead_nowhere(length):
    with pytest.raises(BadStudyError, match=r"JP2|boxes"):
        decode_jpeg_2000(jp2(stream(), struct.pack(">I4s", length, b"free") + bytes(20)), SIZE)


def test_kinds_that_are_not_accepted():
    frame = stream()
    place = frame.index(b"\xff\x5c")
    for marker in (0x5F, 0x60, 0x50):  # POC, PPM, and CAP of high-throughput JPEG 2000
        with pytest.raises(BadStudyError, match="not accepted"):
            decode_jpeg_2000(frame[:place] + bytes((0xFF, marker, 0, 4, 0, 0)) + frame[place:], SIZE)
    with pytest.raises(BadStudyError, match="palette"):
        decode_jpeg_2000(jp2(frame, struct.pack(">I4s", 16, b"jp2h") + struct.pack(">I4s", 8, b"pclr")), SIZE)
