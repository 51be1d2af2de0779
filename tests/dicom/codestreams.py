"""Compressed images to damage, and the data sets that hold them."""

import imagecodecs
import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from benchmarks.damage import radiograph, rle

SYNTAXES = {
    "baseline": JPEGBaseline8Bit,
    "progressive": JPEGBaseline8Bit,
    "extended": JPEGExtended12Bit,
    "lossless": JPEGLosslessSV1,
    "jpeg_ls": JPEGLSLossless,
    "jpeg_2000": JPEG2000Lossless,
    "rle": RLELossless,
}
LOSSLESS = ("lossless", "jpeg_ls", "jpeg_2000", "rle")


def image(kind, size=160):
    bits = 8 if kind in ("baseline", "progressive") else 12
    pixels = radiograph(size, bits)
    return pixels.astype(np.uint8) if bits == 8 else pixels


def compress(kind, pixels):
    if kind == "progressive":
        import cv2

        return cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_PROGRESSIVE, 1])[1].tobytes()
    if kind == "rle":
        return rle(pixels)
    bits = 8 if pixels.dtype == np.uint8 else 12
    return {
        "baseline": lambda: imagecodecs.jpeg8_encode(pixels),
        "extended": lambda: imagecodecs.jpeg8_encode(pixels, bitspersample=12),
        "lossless": lambda: imagecodecs.jpeg8_encode(pixels, bitspersample=bits, lossless=True, predictor=1),
        "jpeg_ls": lambda: imagecodecs.jpegls_encode(pixels),
        "jpeg_2000": lambda: imagecodecs.jpeg2k_encode(pixels, reversible=True, codecformat="J2K", bitspersample=bits),
    }[kind]()


def dataset(kind, frame, shape, **header):
    """Return a data set whose pixel data are one frame, or the frame's fragments."""
    fragments = frame if isinstance(frame, list) else [frame]
    made = Dataset()
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = SYNTAXES.get(kind, ExplicitVRLittleEndian)
    made.Rows, made.Columns, made.SamplesPerPixel = *shape[:2], 1 if len(shape) == 2 else 3
    bits = 8 if kind in ("baseline", "progressive") else 12
    made.BitsAllocated, made.BitsStored, made.HighBit = 8 if bits == 8 else 16, bits, bits - 1
    made.PhotometricInterpretation = "MONOCHROME2" if made.SamplesPerPixel == 1 else "RGB"
    made.PixelRepresentation = made.PlanarConfiguration = 0
    made.PixelData = encapsulate(fragments) if kind in SYNTAXES else frame
    made["PixelData"].VR = "OB" if kind in SYNTAXES else "OW"
    for keyword, value in header.items():
        setattr(made, keyword, value)
    return made
