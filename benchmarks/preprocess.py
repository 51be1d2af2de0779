"""DICOM to prepared image, one process: us against pydicom's own decoder, CLAHE at full size, resize."""

import tempfile
import warnings
from pathlib import Path

import cv2
import pydicom

from benchmarks.pairs import compare
from pipeline.data.annotations import IMAGES
from pipeline.data.clahe import Preparation, prepare
from pipeline.data.dicom import read_radiograph
from pipeline.data.sample import make_sample

STUDIES, SIZE, TARGET = 32, 1024, 512


def main() -> None:
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "rsna"
        make_sample(out, studies=STUDIES, size=SIZE, seed=1, opacity_fraction=0.5, labels=None, workers=0)
        files = sorted((out / IMAGES).glob("*.dcm"))
        clahe = cv2.createCLAHE(2.0, (8, 8))

        def ours() -> None:
            for path in files:
                prepare(read_radiograph(path).pixels, Preparation(TARGET, 2.0, (8, 8)))

        def peer() -> None:
            for path in files:
                cv2.resize(
                    clahe.apply(pydicom.dcmread(path).pixel_array), (TARGET, TARGET), interpolation=cv2.INTER_AREA
                )

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            compare(f"preprocess, {STUDIES} studies {SIZE} -> {TARGET} px", ours, peer, pairs=7)


if __name__ == "__main__":
    main()
