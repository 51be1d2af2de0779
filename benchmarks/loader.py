"""Batches of augmented images: prepared shards against reading each DICOM file every epoch. One process each."""

import tempfile
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pydicom

from benchmarks.pairs import compare
from pipeline.data.annotations import IMAGES
from pipeline.data.checks import take_inventory
from pipeline.data.geometry import xyxy
from pipeline.data.prepared import PreparedImages
from pipeline.data.settings import Preprocessing
from pipeline.data.shards import ShardJob, write_shard
from pipeline.detection.augment import Augmenter, Boxes
from pipeline.detection.dataset import DetectionDataset, Example, collate
from pipeline.params import load_params
from pipeline.sources.sample import make_sample

STUDIES, SIZE, TARGETS, BATCH = 32, 1024, (512, 1024), 4


def main() -> None:
    cv2.setNumThreads(1)
    params = load_params(Path("profiles/rsna.yaml"))
    augmenter = Augmenter(params.augment)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data = Path(folder) / "rsna"
        make_sample(data, studies=STUDIES, size=SIZE, seed=1, opacity_fraction=0.5, labels=None, workers=0)
        studies = take_inventory(data).studies
        files = [data / IMAGES / f"{study.patient_id}.dcm" for study in studies]
        for target in TARGETS:
            prepared = Path(folder) / f"prepared-{target}"
            prepared.mkdir()
            settings = Preprocessing(target, 2.0, (8, 8), ("clahe",))
            write_shard(ShardJob(prepared / "images.npy", tuple(studies), settings))
            index = pd.DataFrame({"shard": "images.npy", "row": range(STUDIES)})
            boxes = [(xyxy(study.boxes) * target / SIZE).astype(np.float32) for study in studies]
            dataset = DetectionDataset(PreparedImages(prepared, index), boxes, augmenter, 0)
            name = f"loader, {STUDIES} studies {SIZE} -> {target} px, batch {BATCH}"
            ours = partial(prepared_example, dataset)
            peer = partial(dicom_example, files, boxes, augmenter, target)
            compare(name, partial(batches, ours), partial(batches, peer), pairs=7)


def prepared_example(dataset: DetectionDataset, place: int) -> Example:
    return dataset[0, place]


def batches(example: Callable[[int], Example]) -> None:
    for start in range(0, STUDIES, BATCH):
        collate([example(place) for place in range(start, start + BATCH)])


def dicom_example(files: list[Path], boxes: list[Boxes], augmenter: Augmenter, target: int, place: int) -> Example:
    equalized = cv2.createCLAHE(2.0, (8, 8)).apply(pydicom.dcmread(files[place]).pixel_array)
    small = cv2.resize(equalized, (target, target), interpolation=cv2.INTER_AREA)
    image, moved = augmenter(np.asarray(small, np.uint8), boxes[place], place)
    return Example(image, moved, np.zeros(len(moved), np.int64), 0, place)


if __name__ == "__main__":
    main()
