"""`pneumoflow predict` over many files: reading in other processes against reading in the process of the model."""

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks import detectors
from benchmarks.pairs import compare
from pipeline import cli
from pipeline.data import reader
from pipeline.data.annotations import IMAGES
from pipeline.data.reader import Outcome
from pipeline.data.settings import Preprocessing
from pipeline.delivery.model_config import ModelConfig
from pipeline.delivery.model_file import save_model
from pipeline.detection.anchors import shape_grid
from pipeline.detection.retinanet import RetinaNet
from pipeline.dicom.radiograph import read_radiograph
from pipeline.errors import BadStudyError
from pipeline.sources.sample import make_sample

FILES, DIFFERENT, SIZE, PAIRS = 500, 50, 1024, 3
# The shipped model, but untrained.
ARCHITECTURE = replace(
    detectors.ARCHITECTURE,
    backbone="resnet18",
    norm="group",
    fpn_channels=96,
    head_convs=2,
    head_norm="group",
    anchor_shapes=shape_grid((1.0, 1.26, 1.587), (0.75, 1.3, 2.2)),
)
POST_PROCESSING = replace(detectors.POST_PROCESSING, nms_thresh=0.4, detections_per_img=100)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        _make_files(root)
        _make_model(root / "models")
        ours, peer = (_predict(root, name) for name in ("pipeline.cli", __spec__.name))
        compare(f"predict, {FILES} files of {SIZE} px, ResNet-18 at 256 px, read in processes", ours, peer, PAIRS)


def _make_files(root: Path) -> None:
    make_sample(root / "rsna", studies=DIFFERENT, size=SIZE, seed=1, opacity_fraction=0.5, labels=None, workers=0)
    (root / "files").mkdir()
    for number, path in enumerate([*sorted((root / "rsna" / IMAGES).glob("*.dcm"))] * (FILES // DIFFERENT)):
        shutil.copy(path, root / f"files/{number}.dcm")


def _make_model(folder: Path) -> None:
    torch.manual_seed(0)
    config = ModelConfig(
        format_version=1, classes=("lung opacity",), architecture=ARCHITECTURE,
        preprocessing=Preprocessing(256, 2.0, (8, 8), ("clahe",)), postprocessing=POST_PROCESSING,
        operating_threshold=0.3, best_epoch=0, val_map=0.0,
    )  # fmt: skip
    save_model(folder, RetinaNet(ARCHITECTURE), config)


def _predict(root: Path, module: str) -> Callable[[], object]:
    """Return a call of the command in its own process, without pictures, which take longer than all the rest."""
    arguments = ["predict", root / "models", root / "files", "--out", root / "out", "--no-pictures"]
    command = [sys.executable, "-m", module, *map(str, arguments)]
    return lambda: subprocess.run(command, check=True, capture_output=True)


class InProcess:
    """A stand-in for `Reader` that reads in the process of the model."""

    def __init__(self, *_: Any) -> None: ...

    def start(self) -> "InProcess":
        return self

    def read_each(self, sources: Iterable[Path | bytes]) -> Iterator[Outcome]:
        for source in sources:
            try:
                yield read_radiograph(source)
            except (BadStudyError, OSError) as error:
                yield error

    def __enter__(self) -> "InProcess":
        return self

    def __exit__(self, *_: object) -> None: ...


if __name__ == "__main__":
    if len(sys.argv) > 1:
        reader.Reader = InProcess  # type: ignore[assignment, misc]
        cli.main()
    else:
        main()
