"""One DICOM file -> one 8-bit radiograph. The file is hostile until it has been read."""

import re
import warnings
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pydicom
from pydicom.encaps import generate_frames
from pydicom.filereader import read_file_meta_info
from pydicom.pixels import apply_modality_lut, apply_windowing, pixel_array
from pydicom.uid import JPEGBaseline8Bit

Image = npt.NDArray[np.uint8]

MAX_FILE_BYTES = 256 * 2**20
MAX_PIXELS = 64 * 10**6

_YEARS = {"": 1.0, "Y": 1.0, "M": 1 / 12, "W": 7 / 365.25, "D": 1 / 365.25}
_END_OF_JPEG = b"\xff\xd9"


class BadStudyError(ValueError):
    """This one file cannot be used; the message is the reason."""


@dataclass(frozen=True)
class Radiograph:
    """A decoded study: ``pixels`` uint8 ``[H, W]``, bright where dense; age in years or NaN."""

    pixels: Image
    view: str
    sex: str
    age: float


def read_radiograph(path: Path) -> Radiograph:
    """Decode a single-frame greyscale DICOM file to 8 bit.

    Rescale slope and intercept are applied, then the header's window if there is one; without a
    window, 8-bit pixels stay as they are and deeper ones are stretched between their .1 and 99.9
    percentiles. MONOCHROME1 is inverted, so that dense is always bright.

    Raises:
        BadStudyError: the file is unreadable, too large, truncated or of a kind that is not accepted.
    """
    try:
        with warnings.catch_warnings():
            # RSNA ages carry no unit ('43'); pydicom says so once per file.
            warnings.filterwarnings("ignore", message="Invalid value for VR AS")
            dataset = _read_dataset(path)
            pixels = _to_uint8(dataset, _decode(dataset))
            return Radiograph(pixels, _word(dataset, "ViewPosition"), _word(dataset, "PatientSex"), _age(dataset))
    except BadStudyError:
        raise
    except Exception as error:  # a parser of hostile bytes fails in any way; the reason is kept, not lost
        raise BadStudyError(f"unreadable: {type(error).__name__}: {' '.join(str(error).split())[:200]}") from error


def _read_dataset(path: Path) -> pydicom.Dataset:
    size = path.stat().st_size
    if size > MAX_FILE_BYTES:
        raise BadStudyError(f"{size} bytes; at most {MAX_FILE_BYTES} are accepted")
    if read_file_meta_info(path).TransferSyntaxUID.is_deflated:
        # Inflating has no bound, even when the pixels are not asked for.
        raise BadStudyError("deflated transfer syntax; not accepted, store it uncompressed or as JPEG")
    dataset = pydicom.dcmread(path)
    if dataset.Rows * dataset.Columns > MAX_PIXELS:
        raise BadStudyError(f"{dataset.Rows} x {dataset.Columns} pixels; at most {MAX_PIXELS} are accepted")
    if dataset.SamplesPerPixel != 1 or int(dataset.get("NumberOfFrames") or 1) != 1:
        raise BadStudyError("not one greyscale frame")
    if dataset.PhotometricInterpretation not in ("MONOCHROME1", "MONOCHROME2"):
        raise BadStudyError(
            f"photometric interpretation {str(dataset.PhotometricInterpretation)[:20]!r}; must be greyscale"
        )
    return dataset


def _decode(dataset: pydicom.Dataset) -> np.ndarray:
    if dataset.file_meta.TransferSyntaxUID != JPEGBaseline8Bit:
        return np.asarray(pixel_array(dataset))
    frame = next(generate_frames(dataset.PixelData, number_of_frames=1))
    # OpenCV fills what is missing of a truncated JPEG with grey and says nothing.
    if _END_OF_JPEG not in frame[-16:]:
        raise BadStudyError("the JPEG image is truncated")
    pixels = cv2.imdecode(np.frombuffer(frame, np.uint8), cv2.IMREAD_GRAYSCALE)
    if pixels is None:
        raise BadStudyError("the JPEG image cannot be decoded")
    if pixels.shape != (dataset.Rows, dataset.Columns):
        raise BadStudyError(f"the image measures {pixels.shape}, the header says {(dataset.Rows, dataset.Columns)}")
    return np.asarray(pixels)


def _to_uint8(dataset: pydicom.Dataset, stored: np.ndarray) -> Image:
    values = apply_modality_lut(stored, dataset)
    if "WindowWidth" in dataset and "WindowCenter" in dataset:
        values = _stretch(apply_windowing(values, dataset), *_window_range(dataset))
    elif values.dtype != np.uint8:
        low, high = np.percentile(values, (0.1, 99.9))
        if not high > low:
            raise BadStudyError("all pixels have one value")
        values = _stretch(values, float(low), float(high))
    pixels = np.asarray(np.clip(values, 0, 255), np.uint8)
    return 255 - pixels if dataset.PhotometricInterpretation == "MONOCHROME1" else pixels


def _window_range(dataset: pydicom.Dataset) -> tuple[float, float]:
    """The range that pydicom's windowing maps to: what the stored bits can say, rescaled."""
    bits, signed = int(dataset.BitsStored), int(dataset.PixelRepresentation)
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    slope, intercept = float(dataset.get("RescaleSlope") or 1), float(dataset.get("RescaleIntercept") or 0)
    return low * slope + intercept, high * slope + intercept


def _stretch(values: np.ndarray, low: float, high: float) -> np.ndarray:
    return np.round(np.clip((values.astype(np.float64) - low) / (high - low), 0, 1) * 255)


def _word(dataset: pydicom.Dataset, keyword: str) -> str:
    value = str(dataset.get(keyword) or "").strip().upper()
    return value if re.fullmatch(r"[A-Z]{1,3}", value) else ""


def _age(dataset: pydicom.Dataset) -> float:
    match = re.fullmatch(r"(\d{1,3})([YMWD]?)", str(dataset.get("PatientAge") or "").strip())
    return float(match[1]) * _YEARS[match[2]] if match else float("nan")
