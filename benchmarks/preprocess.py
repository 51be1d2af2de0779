"""DICOM to prepared shard: our code against the straightforward way, and two processes against one."""

import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import cv2
import pydicom

from benchmarks.pairs import compare
from pipeline.data.annotations import IMAGES
from pipeline.data.checks import take_inventory
from pipeline.data.parallel import Workers
from pipeline.data.settings import Preprocessing
from pipeline.data.shards import ShardJob, preprocess_shards, write_shard
from pipeline.sources.sample import make_sample

STUDIES, SIZE, TARGET = 32, 1024, 512
SETTINGS = Preprocessing(TARGET, 2.0, (8, 8), ("clahe",))
SHARDS = 20


def main() -> None:
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        root = Path(folder)
        data = root / "rsna"
        make_sample(data, studies=STUDIES, size=SIZE, seed=1, opacity_fraction=0.5, labels=None, workers=0)
        studies = tuple(take_inventory(data).studies)
        files = sorted((data / IMAGES).glob("*.dcm"))
        name = f"preprocess, {STUDIES} studies {SIZE} -> {TARGET} px"
        shard = ShardJob(root / "shard.npy", studies, SETTINGS)
        compare(f"{name}, one process", lambda: write_shard(shard), lambda: straightforward(files, root), pairs=7)
        # The time includes the pool's start; a real data set has hundreds of shards.
        many = [ShardJob(root / f"{number}.npy", studies, SETTINGS, 60) for number in range(SHARDS)]
        compare(f"preprocess, {SHARDS * STUDIES} studies, two processes against one",
                prepare(many, root, 2), prepare(many, root, 1), pairs=5)  # fmt: skip


def straightforward(files: list[Path], out: Path) -> None:
    """Prepare images with pydicom's own decoder, CLAHE at full size, a resize and PNG."""
    clahe = cv2.createCLAHE(2.0, (8, 8))
    for path in files:
        equalized = clahe.apply(pydicom.dcmread(path).pixel_array)
        small = cv2.resize(equalized, (TARGET, TARGET), interpolation=cv2.INTER_AREA)
        cv2.imwrite(str(out / f"{path.stem}.png"), small)


def prepare(jobs: list[ShardJob], folder: Path, count: int) -> Callable[[], None]:
    def run() -> None:
        for path in folder.glob("*.json"):
            path.unlink()  # otherwise the shards would count as done
        preprocess_shards(jobs, Workers(count), "")

    return run


if __name__ == "__main__":
    main()
