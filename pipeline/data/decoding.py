"""Pixel data -> stored values. The bytes are hostile: sizes are checked before a decoder sees them."""

import cv2
import numpy as np
import numpy.typing as npt
import pydicom
from pydicom import uid
from pydicom.encaps import generate_frames
from pydicom.pixels import pixel_array

from pipeline.data.codestream import codestream_size, rle_fits
from pipeline.errors import BadStudyError

Image = npt.NDArray[np.uint8]

_END_OF_JPEG = b"\xff\xd9"


def decode(dataset: pydicom.Dataset) -> np.ndarray:
    """Decode the one frame of a data set whose header has been accepted.

    Returns:
        The stored words, ``[H, W]``, with whatever their unused bits hold; or ``[H, W, 3]`` RGB for colour.

    Raises:
        BadStudyError: the compressed image is truncated, or contradicts the header. Decoders raise any other error.
    """
    syntax = dataset.file_meta.TransferSyntaxUID
    shape = (int(dataset.Rows), int(dataset.Columns))
    if syntax.is_encapsulated:
        frame = next(generate_frames(dataset.PixelData, number_of_frames=1))
        _require_size(frame, syntax, (*shape, int(dataset.SamplesPerPixel)))
        if syntax == uid.JPEGBaseline8Bit and dataset.SamplesPerPixel == 1:
            return _decode_jpeg(frame)
    stored = np.asarray(pixel_array(dataset, correct_unused_bits=False))
    if stored.shape[:2] != shape:
        raise BadStudyError(f"the image measures {stored.shape[:2]}, the header says {shape}")
    return stored


def _require_size(frame: bytes, syntax: uid.UID, header: tuple[int, int, int]) -> None:
    """Before decoding: a decoder takes as much memory as the compressed image asks for, whatever the header says."""
    if syntax == uid.RLELossless:
        if not rle_fits(frame, header[0] * header[1]):
            raise BadStudyError("the run-length coded image is larger than the header says")
        return
    size = codestream_size(frame)
    if size is None:
        raise BadStudyError("the compressed image is not of the kind that the header says")
    if size != header:
        raise BadStudyError(f"the compressed image measures {size}, the header says {header} (rows, columns, samples)")


def _decode_jpeg(frame: bytes) -> Image:
    """The fast path: OpenCV's libjpeg-turbo takes a fifth of the time of pydicom's decoder."""
    # OpenCV fills what is missing of a truncated JPEG with grey and says nothing.
    if _END_OF_JPEG not in frame[-16:]:
        raise BadStudyError("the JPEG image is truncated")
    pixels = cv2.imdecode(np.frombuffer(frame, np.uint8), cv2.IMREAD_GRAYSCALE | cv2.IMREAD_IGNORE_ORIENTATION)
    if pixels is None:
        raise BadStudyError("the JPEG image cannot be decoded")
    return np.asarray(pixels, np.uint8)
