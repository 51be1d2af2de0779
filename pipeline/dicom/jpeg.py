"""Decoding of JPEG and JPEG-LS images. A decoder cannot fill up missing parts of an image unnoticed.

simplejpeg decodes sequential and progressive images of 8 bits, and raises where libjpeg-turbo warns. imagecodecs
decodes the others; its libjpeg-turbo warns silently, so the Huffman codes of JPEG images are walked beforehand.
"""

import imagecodecs
import numpy as np
import numpy.typing as npt
import simplejpeg

from pipeline.dicom.codestream import JPEG_LS, LOSSLESS, PROGRESSIVE, SEQUENTIAL, Jpeg, read_jpeg, rebuilt
from pipeline.dicom.colours import ycc_to_rgb
from pipeline.dicom.huffman import require_sound_codes
from pipeline.dicom.jpeg_16_bits import with_12_bits
from pipeline.errors import BadStudyError

Image = npt.NDArray[np.uint8]

_RGB_IDENTIFIERS = ([82, 71, 66], [114, 103, 98])


def decode_jpeg(frame: bytes, size: tuple[int, int, int], *, bits: int, is_ycc: bool) -> tuple[np.ndarray, int]:
    """Decode one image whose rows, columns and samples per pixel must be ``size``.

    Args:
        frame: the image, perhaps followed by other bytes.
        size: rows, columns, samples per pixel.
        bits: bits stored per sample, according to the header.
        is_ycc: whether three samples are YCbCr, according to the header; the image itself may say otherwise.

    Returns:
        The samples, uint8 or uint16 ``[H, W]`` or ``[H, W, 3]`` RGB, and their precision in bits.

    Raises:
        BadStudyError: the image is cut off, damaged or of another size or kind.
    """
    image = read_jpeg(frame)
    if image.size != size:
        raise BadStudyError(
            f"the compressed image measures {image.size}, the header says {size} (rows, columns, samples)"
        )
    if not 2 <= image.precision <= 16:
        raise BadStudyError(f"the compressed image has {image.precision} bits per sample; 2 to 16 are accepted")
    is_ycc = _is_ycc(image, is_ycc)
    if image.precision == 8 and image.process in {*SEQUENTIAL, PROGRESSIVE}:
        return _decode_8_bits(image, is_ycc=is_ycc), 8
    samples = _samples(image, frame, bits)
    return ycc_to_rgb(samples) if is_ycc else samples, image.precision


def _samples(image: Jpeg, frame: bytes, bits: int) -> np.ndarray:
    if image.process == JPEG_LS:
        part = memoryview(frame)[: image.length]
        return np.asarray(imagecodecs.jpegls_decode(part))  # type: ignore[arg-type] # any buffer will do
    if image.process in {LOSSLESS, *SEQUENTIAL}:
        _require_each_component_once(image)
        require_sound_codes(image)
        is_gdcm = image.process in SEQUENTIAL and image.precision == 16
        if is_gdcm and bits > 12:
            raise BadStudyError(f"lossy JPEG of {bits} bits: not accepted, JPEG has at most 12")
        segments = with_12_bits(image) if is_gdcm else image.segments
        return np.asarray(imagecodecs.jpeg8_decode(rebuilt(image, segments, is_ycc=False)))
    raise BadStudyError(f"JPEG of a kind that is not accepted (frame marker {image.process:02X})")


def _decode_8_bits(image: Jpeg, *, is_ycc: bool) -> np.ndarray:
    if image.process == PROGRESSIVE:
        _require_all_coefficients(image)
    else:
        _require_each_component_once(image)
    # A block takes at least a bit for its DC difference, and a bit for its end if one scan holds all coefficients.
    blocks = -(-image.rows // 8) * -(-image.columns // 8)
    if 8 * sum(len(scan.data) for scan in image.scans) < blocks * (1 if image.process == PROGRESSIVE else 2):
        raise BadStudyError("the JPEG image is truncated: fewer bits than blocks")
    grey = len(image.components) == 1
    try:
        pixels: Image = simplejpeg.decode_jpeg(rebuilt(image, image.segments, is_ycc=is_ycc), "GRAY" if grey else "RGB")
    except ValueError as error:
        # libjpeg's messages are about markers and tables, never about the contents of the DICOM header.
        raise BadStudyError(f"the JPEG image cannot be decoded: {error}") from None
    return pixels[..., 0] if grey else pixels


def _require_each_component_once(image: Jpeg) -> None:
    if sorted(component for scan in image.scans for component in scan.components) != list(range(len(image.components))):
        raise BadStudyError("the JPEG data are damaged: each component must be in one scan")


def _require_all_coefficients(image: Jpeg) -> None:
    """Require all bits of all coefficients, because a progressive image cut off between two scans is only blurred."""
    bits_left = np.full((len(image.components), 64), 255)
    for scan in image.scans:
        for component in scan.components:
            bits_left[component, scan.selection[0] : scan.selection[1] + 1] = scan.approximation[1]
    if bits_left.any():
        raise BadStudyError("the JPEG image is truncated: scans are missing")


def _is_ycc(image: Jpeg, is_ycc: bool) -> bool:
    """Tell whether samples are YCbCr, in pydicom's order: identifiers R, G, B, then a JFIF marker, then the header."""
    if [part.identifier for part in image.components] in _RGB_IDENTIFIERS:
        return False
    return len(image.components) == 3 and (is_ycc or image.is_jfif)
