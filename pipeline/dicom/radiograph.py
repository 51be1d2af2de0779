"""Reading of one DICOM, PNG or JPEG file into one radiograph; it counts as hostile until it has been read."""

import logging
import math
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pydicom
from pydicom import uid

from pipeline.dicom.decoding import decode
from pipeline.dicom.greyscale import plain_to_grey, to_grey
from pipeline.dicom.header import numbers, optional, read_header, transfer_syntax, whole_number
from pipeline.dicom.levels import Levels, to_8_bits
from pipeline.dicom.pictures import decode_picture, is_picture
from pipeline.dicom.views import view_of
from pipeline.errors import BadStudyError
from pipeline.file_kinds import HEAD_BYTES, file_kind, is_dicom

Image = npt.NDArray[np.uint8]

MAX_FILE_BYTES = 256 * 2**20
MAX_PIXELS = 64 * 10**6

# Transfer syntaxes that pneumoflow's decoders can read. Deflated files are excluded, because inflating has no bound.
TRANSFER_SYNTAXES = frozenset(
    {
        uid.ImplicitVRLittleEndian, uid.ExplicitVRLittleEndian, uid.ExplicitVRBigEndian,
        uid.JPEGBaseline8Bit, uid.JPEGExtended12Bit, uid.JPEGLossless, uid.JPEGLosslessSV1,
        uid.JPEGLSLossless, uid.JPEGLSNearLossless, uid.JPEG2000Lossless, uid.JPEG2000, uid.RLELossless,
    }
)  # fmt: skip
_NUMBERS = ("Rows", "Columns", "SamplesPerPixel", "BitsAllocated", "BitsStored")
_NEEDED = (*_NUMBERS, "PhotometricInterpretation", "PixelData")
_GREY = ("MONOCHROME1", "MONOCHROME2")
_COLOUR = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_RCT", "YBR_ICT")

# The manufacturer that DICOM objects made by us name.
OUR_NAME = "pneumoflow"
# Any other word may be anything, even a name, and does not leave the file.
SEXES = frozenset({"M", "F", "O"})
_YEARS = {"": 1.0, "Y": 1.0, "M": 1 / 12, "W": 7 / 365.25, "D": 1 / 365.25}


@dataclass(frozen=True)
class Radiograph:
    """A decoded study, and the only tags that leave its file.

    Attributes:
        levels: grey levels ``[H, W]``; dense tissue is bright. uint8, or uint16 over its whole range for a file
            with more than 8 bits.
        view: one of `VIEWS`; empty if not known.
        sex: ``M``, ``F``, ``O``; empty if not known.
        age: in years, or NaN.
        spacing: pixel spacing at the detector in mm, or NaN.
    """

    levels: Levels
    view: str
    sex: str
    age: float
    spacing: float

    @property
    def pixels(self) -> Image:
        """Return the grey levels in 8 bits, uint8 ``[H, W]``."""
        return to_8_bits(self.levels)


def read_radiograph(source: Path | bytes) -> Radiograph:
    """Decode a single-frame DICOM file, or its content, to grey levels; see `to_grey`. PNG and JPEG are read too.

    Raises:
        BadStudyError: the content is no such file, too large, truncated or of a kind that is not accepted.
        OSError: the file does not exist, or cannot be read at the moment.
    """
    content = source if isinstance(source, bytes) else _read_file(source)
    if len(content) > MAX_FILE_BYTES:
        raise BadStudyError(f"more than {MAX_FILE_BYTES} bytes; larger files are not accepted")
    if is_picture(content[:HEAD_BYTES]):
        with _step("the image cannot be decoded"):
            return Radiograph(plain_to_grey(decode_picture(content, MAX_PIXELS)), "", "", math.nan, math.nan)
    with _silence():
        with _step("the header cannot be read"):
            dataset = _read_accepted(content)
        with _step("the pixels cannot be decoded"):
            stored = decode(dataset)
        with _step("the header's grey level or patient values cannot be used"):
            return Radiograph(to_grey(dataset, stored), *_tags(dataset))


def read_view(path: Path) -> str:
    """Return the view of a file, as in `Radiograph`; its pixels are not decoded.

    Raises:
        BadStudyError: the file is not an image of an accepted kind.
        OSError: the file does not exist, or cannot be read at the moment.
    """
    content = _read_file(path)
    if is_picture(content[:HEAD_BYTES]):
        return ""
    with _silence(), _step("the header cannot be read"):
        return view_of(_read_accepted(content))


@contextmanager
def _silence() -> Iterator[None]:
    """Silence pydicom, whose warnings and log records contain values of the header."""
    log = logging.getLogger("pydicom")
    before, log.disabled = log.disabled, True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.disabled = before


@contextmanager
def _step(failure: str) -> Iterator[None]:
    """Turn any error into our own, because a parser of hostile bytes may fail in any way.

    The message may name the step. It must not repeat the parser's words, because they quote the
    header, which holds names and birth dates.
    """
    try:
        yield
    except BadStudyError:
        raise
    except Exception as error:  # noqa: BLE001
        raise BadStudyError(f"{failure} ({type(error).__name__})") from None


def _read_file(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(MAX_FILE_BYTES + 1)


def _read_accepted(content: bytes) -> pydicom.Dataset:
    """Read the data set of a file; its transfer syntax and its image must be of an accepted kind."""
    if not is_dicom(content[:HEAD_BYTES]):
        raise BadStudyError(f"not a DICOM, PNG or JPEG file but {file_kind(content[:HEAD_BYTES])}")
    syntax = transfer_syntax(content)
    if syntax is not None and syntax not in TRANSFER_SYNTAXES:
        name = syntax.name if syntax in uid.AllTransferSyntaxes else "unknown"
        raise BadStudyError(f"transfer syntax {name}: not accepted; store it uncompressed or as JPEG")
    dataset = read_header(content)
    _require_accepted(dataset)
    return dataset


def _require_accepted(dataset: pydicom.Dataset) -> None:
    # An archive may send our own answers back, and each would be answered in turn.
    if str(optional(dataset, "Manufacturer") or "").strip() == OUR_NAME:
        raise BadStudyError(f"made by {OUR_NAME} itself, as an answer to an archive")
    for keyword in _NEEDED:
        if dataset.get(keyword) is None:
            raise BadStudyError(f"contains no image: {keyword} is missing")
    rows, columns, samples, allocated, stored = (_needed_number(dataset, keyword) for keyword in _NUMBERS)
    if rows * columns > MAX_PIXELS:
        raise BadStudyError(f"{rows} x {columns} pixels; at most {MAX_PIXELS} are accepted")
    if (whole_number(dataset, "NumberOfFrames") or 1) != 1:
        raise BadStudyError("more than one frame; must be a single radiograph")
    kind = str(optional(dataset, "PhotometricInterpretation"))
    if (kind in _GREY, kind in _COLOUR, samples) not in ((True, False, 1), (False, True, 3)):
        raise BadStudyError("photometric interpretation: must be MONOCHROME1, MONOCHROME2, RGB or YBR")
    if allocated not in (8, 16) or not 1 <= stored <= allocated:
        raise BadStudyError(f"{stored} bits stored in {allocated}; must be at most 16, in 8 or 16")
    # Decoders ask for these elements. Files without them, or with invalid values, mean the usual values.
    dataset.NumberOfFrames = 1
    for keyword in ("PixelRepresentation", "PlanarConfiguration"):
        if whole_number(dataset, keyword) not in (0, 1):
            setattr(dataset, keyword, 0)


def _needed_number(dataset: pydicom.Dataset, keyword: str) -> int:
    value = whole_number(dataset, keyword)
    if value is None or value < 1:
        raise BadStudyError(f"{keyword} must be one whole number above 0")
    return value


def _tags(dataset: pydicom.Dataset) -> tuple[str, str, float, float]:
    sex = str(optional(dataset, "PatientSex") or "").strip().upper()
    return view_of(dataset), sex if sex in SEXES else "", _age(dataset), _spacing(dataset)


def _age(dataset: pydicom.Dataset) -> float:
    match = re.fullmatch(r"(\d{1,3})([YMWD]?)", str(optional(dataset, "PatientAge") or "").strip())
    return float(match[1]) * _YEARS[match[2]] if match else float("nan")


def _spacing(dataset: pydicom.Dataset) -> float:
    for keyword in ("ImagerPixelSpacing", "PixelSpacing"):
        pair = numbers(dataset, keyword)
        if len(pair) == 2 and all(0.01 <= side <= 10 for side in pair):
            return (pair[0] + pair[1]) / 2
    return float("nan")
