"""Reading of mutated DICOM files in a separate process, which a decoder may crash.

Usage: fuzz_dicom.py FOLDER COUNT.
"""

import json
import random
import sys
from collections import Counter
from pathlib import Path

from pydicom.data import get_testdata_file

from pipeline.dicom.radiograph import read_radiograph
from pipeline.errors import BadStudyError

BASES = (
    "MR_small.dcm", "MR_small_bigendian.dcm", "MR_small_implicit.dcm", "MR_small_RLE.dcm",
    "MR_small_jp2klossless.dcm", "MR_small_jpeg_ls_lossless.dcm", "JPGExtended.dcm", "SC_rgb_jpeg_gdcm.dcm",
    "SC_rgb_jpeg_dcmtk.dcm", "SC_rgb_rle_16bit.dcm", "JPEGLSNearLossless_16.dcm",
)  # fmt: skip


def mutate(content, rng):
    """Change some bytes of the header or of the whole file, cut the end off, or insert some bytes."""
    changed = bytearray(content)
    kind = rng.choices(("header", "any", "cut", "insert"), (4, 4, 1, 1))[0]
    if kind == "cut":
        del changed[rng.randrange(len(changed)) :]
    elif kind == "insert":
        place = rng.randrange(len(changed))
        changed[place:place] = rng.randbytes(rng.randint(1, 8))
    else:
        reach = min(len(changed), 2000) if kind == "header" else len(changed)
        for _ in range(rng.randint(1, 8)):
            changed[rng.randrange(reach)] = rng.randrange(256)
    return bytes(changed)


def peak_memory():
    """Return MiB; getrusage is no use, because its peak is inherited from the process that started this one."""
    status = Path("/proc/self/status").read_text().split()
    return int(status[status.index("VmHWM:") + 1]) / 1024


def main(folder, count):
    contents = [Path(get_testdata_file(name, download=False)).read_bytes() for name in BASES]
    jpeg = sorted(Path(folder).glob("*.dcm"))[0]
    contents.append(jpeg.read_bytes())
    rng, seen = random.Random(0), Counter()
    path = Path("mutated.dcm")
    for number in range(count):
        path.write_bytes(mutate(contents[number % len(contents)], rng))
        try:
            pixels = read_radiograph(path).pixels
            assert pixels.ndim == 2
            assert pixels.dtype == "uint8"
            assert pixels.size <= 2**24  # the files have at most some 100 KB
            seen["read"] += 1
        except BadStudyError:
            seen["refused"] += 1
    print(json.dumps(seen | {"peak_mib": peak_memory()}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
