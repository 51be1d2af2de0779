"""Counts of damaged compressed images that are refused or come out wrong. Usage: python -m benchmarks.damage.

A synthetic radiograph in each kind of compression is damaged: files with one flipped bit, and files that are cut off
after about a third of the data and closed with an end marker. pydicom's own decoders run side by side where there is
one.
"""

import random
import sys
import warnings
from collections import Counter
from collections.abc import Callable

import cv2
import imagecodecs
import numpy as np
import numpy.typing as npt
import pydicom
from pydicom import uid
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.pixels import pixel_array
from pydicom.pixels.encoders import RLELosslessEncoder

from pipeline.dicom.decoding import decode
from pipeline.errors import BadStudyError

FILES, SIZE = 150, 512
# An error of a pixel above this, on a scale of 256, is visible.
VISIBLE = 8


def radiograph(size: int, bits: int, seed: int = 0) -> npt.NDArray[np.uint16]:
    """Make a smooth body with ribs and the noise of a detector, ``[size, size]``."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:size, 0:size] / size
    body = np.exp(-((x - 0.5) ** 2 / 0.12 + (y - 0.55) ** 2 / 0.2))
    coarse = cv2.resize(rng.random((8, 8)), (size, size), interpolation=cv2.INTER_CUBIC)
    shown = 0.1 + body * (0.5 + 0.2 * coarse + 0.06 * np.sin(40 * y + 6 * x)) + rng.normal(0, 0.006, (size, size))
    return np.asarray(np.round(np.clip(shown, 0, 1) * (2**bits - 1)), np.uint16)


def kinds() -> dict[str, tuple[uid.UID, int, bytes | bytearray]]:
    """Return the transfer syntax, the bits and the compressed image of each kind of compression."""
    eight, twelve = radiograph(SIZE, 8).astype(np.uint8), radiograph(SIZE, 12)
    progressive = [cv2.IMWRITE_JPEG_PROGRESSIVE, 1]
    return {
        "JPEG baseline": (uid.JPEGBaseline8Bit, 8, cv2.imencode(".jpg", eight)[1].tobytes()),
        "JPEG progressive": (uid.JPEGBaseline8Bit, 8, cv2.imencode(".jpg", eight, progressive)[1].tobytes()),
        "JPEG Extended, 12 bit": (uid.JPEGExtended12Bit, 12, imagecodecs.jpeg8_encode(twelve, bitspersample=12)),
        "JPEG lossless": (
            uid.JPEGLosslessSV1, 12, imagecodecs.jpeg8_encode(twelve, bitspersample=12, lossless=True, predictor=1),
        ),
        "JPEG-LS": (uid.JPEGLSLossless, 12, imagecodecs.jpegls_encode(twelve)),
        "JPEG 2000": (uid.JPEG2000Lossless, 12, imagecodecs.jpeg2k_encode(twelve, reversible=True, codecformat="J2K")),
        "JPEG 2000, lossy": (uid.JPEG2000, 12, imagecodecs.jpeg2k_encode(twelve, level=80, codecformat="J2K")),
        "RLE": (uid.RLELossless, 12, rle(twelve)),
    }  # fmt: skip


def rle(pixels: npt.NDArray[np.uint16]) -> bytes:
    """Compress with pydicom."""
    rows, columns = pixels.shape
    return RLELosslessEncoder.encode(
        pixels, rows=rows, columns=columns, samples_per_pixel=1, photometric_interpretation="MONOCHROME2",
        bits_allocated=16, bits_stored=12, pixel_representation=0, number_of_frames=1,
        encoding_plugin="pydicom",
    )  # fmt: skip


def dataset(syntax: uid.UID, bits: int, frame: bytes | bytearray) -> Dataset:
    """Make the data set of an image of `SIZE`."""
    made = Dataset()
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = syntax
    made.Rows = made.Columns = SIZE
    made.SamplesPerPixel, made.PhotometricInterpretation, made.PixelRepresentation = 1, "MONOCHROME2", 0
    made.BitsAllocated, made.BitsStored, made.HighBit = 8 if bits == 8 else 16, bits, bits - 1
    made.NumberOfFrames = 1
    made.PixelData = encapsulate([bytes(frame)])
    made["PixelData"].VR = "OB"
    return made


def flipped(frame: bytes, rng: random.Random) -> bytes:
    """Flip one bit behind the headers, which take up at most the first 700 bytes."""
    changed = bytearray(frame)
    changed[rng.randrange(700, len(frame) - 2)] ^= 1 << rng.randrange(8)
    return bytes(changed)


def cut(frame: bytes, rng: random.Random) -> bytes:
    """Cut the data off after about a third, and close it with the end marker of JPEG and JPEG 2000."""
    return frame[: len(frame) // 3 + rng.randrange(-len(frame) // 20, len(frame) // 20)] + b"\xff\xd9"


def outcomes(name: str, damage: Callable[[bytes, random.Random], bytes], decoder: Callable[[Dataset], np.ndarray],
             seen: list[str] | None = None) -> Counter[str]:  # fmt: skip
    """Count how many damaged files of a kind a decoder refuses, decodes wrong or decodes right."""
    syntax, bits, frame = kinds()[name]
    sound = decoder(dataset(syntax, bits, frame)).astype(int)
    rng, counts = random.Random(0), Counter[str]()
    for _ in range(FILES):
        try:
            found = decoder(dataset(syntax, bits, damage(bytes(frame), rng)))
        except (BadStudyError, RuntimeError, ValueError, IndexError, pydicom.errors.BytesLengthException) as error:
            counts["refused"] += 1
            if seen is not None:
                seen.append(str(error))
            continue
        off = np.abs(found - sound).max() if found.shape == sound.shape else np.inf
        counts["wrong" if off > VISIBLE * 2 ** (bits - 8) else "right"] += 1
    return counts


def main() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        print(f"of {FILES} damaged images each: refused / visibly wrong (rest: no visible change)")
        print(f"{'':24}{'one bit flipped':^36}{'cut off and closed':^36}")
        print(f"{'':24}" + 2 * f"{'pneumoflow':>18}{'pydicom':>18}")
        for name in sys.argv[1:] or kinds():
            cells = []
            for damage in (flipped, cut):
                for decoder in (decode, pixel_array):
                    try:
                        counts = outcomes(name, damage, decoder)
                        cells.append(f"{counts['refused']} / {counts['wrong']}")
                    except RuntimeError:
                        cells.append("no decoder")
            print(f"{name:24}" + "".join(f"{cell:>18}" for cell in cells), flush=True)


if __name__ == "__main__":
    main()
