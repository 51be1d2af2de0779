"""Grey levels, compared with pydicom's functions and the standard's formulae, and for headers of real files."""

import numpy as np
import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pydicom.pixels import apply_modality_lut, apply_windowing

from pipeline.dicom.radiograph import read_radiograph
from pipeline.errors import BadStudyError

RAMP = np.arange(4096, dtype=np.uint16).reshape(64, 64)
TWELVE = {"BitsStored": 12, "HighBit": 11}
WIDE = {"WindowCenter": 2048, "WindowWidth": 4096}


def shown(made):
    return read_radiograph(made).levels.astype(float)


def sequence(**values):
    """Return a sequence whose only item is a VOI or modality table."""
    item = Dataset()
    for keyword, value in values.items():
        if isinstance(value, tuple):
            item.add_new(keyword, *value)
        else:
            setattr(item, keyword, value)
    return [item]


def table(count, first, bits, data, representation="US"):
    return sequence(LUTDescriptor=("US", [count, first, bits]), LUTData=(representation, data))


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
@pytest.mark.parametrize(("centre", "width"), [(2048, 4096), (900, 1), (1000.5, 333), (-500, 3000)])
@pytest.mark.parametrize(("slope", "intercept"), [(1, 0), (2, -100), (-1, 4095)])
def test_windows_are_pydicoms(make, function, centre, width, slope, intercept):
    path = make(RAMP, **TWELVE, WindowCenter=centre, WindowWidth=width, VOILUTFunction=function,
                RescaleSlope=slope, RescaleIntercept=intercept)  # fmt: skip
    dataset = pydicom.dcmread(path)
    with np.errstate(over="ignore"):
        values = apply_windowing(apply_modality_lut(RAMP, dataset), dataset)
    ends = intercept, 4095 * slope + intercept
    wanted = (values - ends[0]) / (ends[1] - ends[0]) * 65535
    assert np.abs(shown(path) - wanted).max() <= 1


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(bits=st.integers(2, 16), spare=st.integers(0, 14), signed=st.booleans(), seed=st.integers(0, 99))
def test_a_sample_lies_where_the_header_says_and_other_bits_are_ignored(make, bits, spare, signed, seed):
    """PS3.5 8.1.1: a sample has the bits HighBit - BitsStored + 1 to HighBit."""
    spare = min(spare, 16 - bits)
    rng = np.random.default_rng(seed)
    samples = rng.integers(0, 2**bits, (64, 64))
    samples[0, :2] = 0, 2**bits - 1
    dirt = rng.integers(0, 2**16, samples.shape) & ~((2**bits - 1) << spare)
    words = ((samples << spare) | dirt).astype(np.uint16)
    header = {"BitsStored": bits, "HighBit": bits + spare - 1, "PixelRepresentation": int(signed)}
    values = np.where(samples >= 2 ** (bits - 1), samples - 2**bits, samples) if signed else samples
    low = -(2 ** (bits - 1)) if signed else 0
    window = {"WindowCenter": low + 2 ** (bits - 1), "WindowWidth": 2**bits, "VOILUTFunction": "LINEAR_EXACT"}
    found = read_radiograph(make(words, **header, **window)).levels
    white = 255 if bits <= 8 else 65535
    assert found.max() <= white
    assert np.abs(found - (values - low) / 2**bits * white).max() <= 1


def test_a_high_bit_outside_the_word_is_refused(make):
    with pytest.raises(BadStudyError, match="HighBit 17"):
        read_radiograph(make(RAMP, BitsStored=12, HighBit=17))
    with pytest.raises(BadStudyError, match="HighBit 5"):
        read_radiograph(make(RAMP, BitsStored=12, HighBit=5))


@pytest.mark.parametrize(
    "header",
    [
        {"WindowWidth": 0}, {"WindowWidth": -5}, {"WindowWidth": 0.5}, {"WindowCenter": ""},
        {"WindowCenter": (0x00281050, "LO", "2047,5")},
        {"WindowWidth": (0x00281051, "LO", "wide")},
        {"WindowCenter": None}, {"VOILUTSequence": sequence()}, {"VOILUTSequence": []},
        {"WindowWidth": (0x00281051, "LO", "NaN")}, {"WindowWidth": (0x00281051, "LO", "1e999")},
        {"VOILUTSequence": sequence(LUTDescriptor=("US", [4096, 0, 16]))},
    ],
)  # fmt: skip
def test_a_window_or_table_that_cannot_be_read_is_none(make, header):
    plain = shown(make(RAMP, **TWELVE))
    one = {"WindowCenter": 2048, "WindowWidth": 4096} if "VOILUTSequence" not in header else {}
    np.testing.assert_array_equal(shown(make(RAMP, **TWELVE, **(one | header))), plain)


def test_an_empty_table_leaves_the_window(make):
    wanted = shown(make(RAMP, **TWELVE, **WIDE))
    np.testing.assert_array_equal(shown(make(RAMP, **TWELVE, **WIDE, VOILUTSequence=sequence())), wanted)


def test_the_first_valid_of_several_windows_counts(make):
    wanted = shown(make(RAMP, **TWELVE, WindowCenter=1000, WindowWidth=500))
    path = make(RAMP, **TWELVE, WindowCenter=[2048, 1000, 7], WindowWidth=[0, 500, 9])
    np.testing.assert_array_equal(shown(path), wanted)


@pytest.mark.parametrize("function", ["", "FREEHAND", None])
def test_an_unknown_function_is_linear(make, function):
    wanted = shown(make(RAMP, **TWELVE, **WIDE, VOILUTFunction="LINEAR"))
    np.testing.assert_array_equal(shown(make(RAMP, **TWELVE, **WIDE, VOILUTFunction=function)), wanted)


@pytest.mark.parametrize("slope", [0, "", None, (0x00281053, "LO", "1,0")])
def test_a_slope_that_means_nothing_is_none(make, slope):
    wanted = shown(make(RAMP, **TWELVE, **WIDE))
    np.testing.assert_array_equal(shown(make(RAMP, **TWELVE, **WIDE, RescaleSlope=slope)), wanted)


@pytest.mark.parametrize(
    "header",
    [
        {"WindowCenter": 100_000, "WindowWidth": 50}, {"WindowCenter": -500, "WindowWidth": 50},
        {"VOILUTSequence": table(4096, 0, 16, [7] * 4096)},
        {"PixelPaddingValue": (0x00280120, "US", 0),
         "PixelPaddingRangeLimit": (0x00280121, "US", 4095)},
    ],
)  # fmt: skip
def test_a_header_that_leaves_one_grey_level_is_refused(make, header):
    with pytest.raises(BadStudyError, match="one value|padding"):
        read_radiograph(make(RAMP, **TWELVE, **header))


CURVE = np.round(4095 * np.linspace(0, 1, 4096) ** 0.5).astype(int)


@pytest.mark.parametrize(
    ("bits", "entries", "white"),
    [
        (12, CURVE, 4095),  # as the standard says
        (16, CURVE, 4095),  # narrower than declared
        (8, CURVE, 4095),  # wider than declared
        (16, CURVE // 2, 2047),
        (12, CURVE // 2 + 1024, 4095),  # 12 bits, whose largest value is not reached
        (0, CURVE, 4095),
    ],
)
def test_entries_are_scaled_by_the_bits_that_they_have(make, bits, entries, white):
    found = shown(make(RAMP, **TWELVE, VOILUTSequence=table(4096, 0, bits, entries.tolist())))
    assert np.abs(found.ravel() - entries / white * 65535).max() <= 1


@pytest.mark.parametrize("count", [4096, 4095])
@pytest.mark.parametrize("declared", [8, 16])
@pytest.mark.parametrize("representation", ["US", "OW"])
def test_entries_of_one_byte_each(make, count, declared, representation):
    entries = (CURVE[:count] // 16).astype(np.uint8)
    packed = entries.tobytes() + b"\0" * (count % 2)
    data = packed if representation == "OW" else np.frombuffer(packed, "<u2").tolist()
    found = shown(make(RAMP, **TWELVE, VOILUTSequence=table(count, 0, declared, data, representation)))
    wanted = entries[np.minimum(np.arange(4096), count - 1)] / 255 * 65535
    assert np.abs(found.ravel() - wanted).max() <= 1


@pytest.mark.parametrize(
    ("signed", "first", "stored_from"),
    [
        (0, 40_000, 40_000), (0, 65_336, 61_440),  # unsigned, beyond 15 bits
        (1, 2**16 - 2048, -2048), (1, 2**16 - 200, -300), (1, 100, 0),
    ],
)  # fmt: skip
@pytest.mark.parametrize("written", ["US", "SS"])
def test_the_first_value_has_the_sign_of_the_pixels(make, signed, first, stored_from, written):
    """PS3.3 C.11.2.1.1; the value representation in the header does not matter."""
    values = np.arange(stored_from, stored_from + 4096)
    pixels = (values % 2**16).astype(np.uint16).reshape(64, 64)
    meant = first - 2**16 if signed and first >= 2**15 else first
    descriptor = [4096, first - 2**16 if written == "SS" and first >= 2**15 else first, 12]
    lut = sequence(LUTDescriptor=(written, descriptor), LUTData=("US", CURVE.tolist()))
    found = shown(make(pixels, PixelRepresentation=signed, VOILUTSequence=lut))
    wanted = CURVE[np.clip(values - meant, 0, 4095)] / 4095 * 65535
    assert np.abs(found.ravel() - wanted).max() <= 1


@pytest.mark.parametrize("keyword", ["VOILUTSequence", "ModalityLUTSequence"])
def test_a_table_shorter_than_it_says_is_refused(make, keyword):
    with pytest.raises(BadStudyError, match="3000 entries; its header says 4096"):
        read_radiograph(make(RAMP, **TWELVE, **{keyword: table(4096, 0, 12, CURVE[:3000].tolist())}))


@pytest.mark.parametrize("function", ["", "LINEAR"])
def test_a_colour_image_has_no_window(make, function):
    colours = np.random.default_rng(0).integers(0, 256, (16, 48), dtype=np.uint8)
    colour = {"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB", "PlanarConfiguration": 0, "Columns": 16}
    plain = read_radiograph(make(colours, **colour)).levels
    window = {"WindowCenter": 127, "WindowWidth": 25, "VOILUTFunction": function}
    np.testing.assert_array_equal(read_radiograph(make(colours, **colour, **window)).levels, plain)


def test_padding_written_with_the_other_sign(make):
    pixels = RAMP.astype(np.int16) - 2000
    pixels[:4] = -2048
    header = {"PixelRepresentation": 1, "PixelPaddingValue": (0x00280120, "US", 2**16 - 2048)}
    found = read_radiograph(make(pixels.astype(np.uint16), **header)).levels
    assert found[:4].max() == 0
    assert found[4, 0] < found[4, 63] < found[63, 63] == 65535


@pytest.mark.parametrize(
    "header",
    [
        {"PixelPaddingValue": (0x00280120, "LO", "none")}, {"HighBit": None},
        {"PixelRepresentation": None}, {"NumberOfFrames": (0x00280008, "LO", "one")},
    ],
)  # fmt: skip
def test_what_a_header_need_not_say(make, header):
    wanted = shown(make(RAMP, **TWELVE, **WIDE))
    np.testing.assert_array_equal(shown(make(RAMP, **(TWELVE | WIDE | header))), wanted)


def test_eight_bit_files_keep_their_bytes(make):
    pixels = np.random.default_rng(1).integers(0, 256, (40, 30), dtype=np.uint8)
    found = read_radiograph(make(pixels)).levels
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, pixels)


def test_deep_files_keep_their_steps(make):
    found = read_radiograph(make(RAMP, **TWELVE, **WIDE)).levels
    assert found.dtype == np.uint16
    assert len(np.unique(found)) > 4000
