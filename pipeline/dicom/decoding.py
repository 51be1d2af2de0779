"""Decoding of pixel data into stored values. The bytes are hostile: sizes are checked before a decoder sees them."""

import io

import numpy as np
import pydicom
from pydicom import uid
from pydicom.encaps import generate_fragments, parse_basic_offsets

from pipeline.dicom.colours import ycc_to_rgb
from pipeline.dicom.jpeg import decode_jpeg
from pipeline.dicom.jpeg2000 import decode_jpeg_2000
from pipeline.dicom.native import decode_native
from pipeline.dicom.rle import decode_rle
from pipeline.errors import BadStudyError

_YBR = ("YBR_FULL", "YBR_FULL_422")
# A JPEG 2000 codestream states its own colour transforms; run-length coding has none.
_STILL_YCC = {uid.RLELossless: _YBR, uid.JPEG2000: _YBR, uid.JPEG2000Lossless: _YBR}


def decode(dataset: pydicom.Dataset) -> np.ndarray:
    """Decode the one frame of a data set whose header has been accepted.

    Returns:
        The stored words, ``[H, W]``, including the contents of their unused bits; or ``[H, W, 3]`` RGB for colour.

    Raises:
        BadStudyError: the image is truncated, damaged, or contradicts the header. Decoders may raise any other error.
    """
    syntax = dataset.file_meta.TransferSyntaxUID
    size = (int(dataset.Rows), int(dataset.Columns), int(dataset.SamplesPerPixel))
    kind = str(dataset.PhotometricInterpretation)
    if not syntax.is_encapsulated:
        return decode_native(dataset, size)
    words = _words(*_decompressed(dataset, size, kind), dataset)
    # If the codestream itself states a colour transform, its decoder has undone it.
    return ycc_to_rgb(words) if kind in _STILL_YCC.get(syntax, ()) else words


def _decompressed(dataset: pydicom.Dataset, size: tuple[int, int, int], kind: str) -> tuple[np.ndarray, int]:
    """Return the image's samples and their precision in bits."""
    syntax, data = dataset.file_meta.TransferSyntaxUID, io.BytesIO(dataset.PixelData)
    # The first item is the offset table. The others hold the frame, in any number of fragments.
    parse_basic_offsets(data)
    frame = b"".join(generate_fragments(data))
    if syntax == uid.RLELossless:
        allocated = int(dataset.BitsAllocated)
        return decode_rle(frame, size, allocated // 8), allocated
    if syntax in uid.JPEG2000TransferSyntaxes:
        return decode_jpeg_2000(frame, size)
    return decode_jpeg(frame, size, bits=int(dataset.BitsStored), is_ycc=kind.startswith("YBR"))


def _words(samples: np.ndarray, precision: int, dataset: pydicom.Dataset) -> np.ndarray:
    """Return the samples as the file would store them uncompressed, signed or unsigned as its header says.

    An encoder without signed samples treats those of a signed image as unsigned samples with the same bits.
    """
    if precision > int(dataset.BitsAllocated):
        raise BadStudyError(f"the compressed image has {precision} bits per sample, the header allocates 8")
    is_signed = bool(dataset.get("PixelRepresentation"))
    width = 8 if max(precision, int(dataset.BitsStored)) <= 8 else 16
    if is_signed == (samples.dtype.kind == "i"):
        return samples.astype(f"{samples.dtype.kind}{width // 8}", copy=False)
    words = samples.astype(f"u{width // 8}", copy=False)
    if not is_signed:
        return np.asarray(words & words.dtype.type(2**precision - 1))
    spare = width - precision
    moved = (words << words.dtype.type(spare)).view(f"i{width // 8}")
    return np.asarray(moved >> moved.dtype.type(spare))
