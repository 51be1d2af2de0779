"""The common input of train and evaluate: prepared images, boxes and splits, joined by study."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pandas as pd

from pipeline.data.classes import NORMAL, NOT_NORMAL, OPACITY
from pipeline.data.geometry import letterbox_scale, xyxy
from pipeline.data.prepared import PreparedImages, read_boxes, read_index, require_shards
from pipeline.data.splits import LEAKED, SPLITS, read_splits, require_no_leak
from pipeline.errors import UserError
from pipeline.params import Params, PreprocessParams
from pipeline.paths import PREPARED, SPLITS_FILE

if TYPE_CHECKING:
    from pipeline.detection.dataset import Augment, DetectionDataset

# In the order of the image-level head's outputs.
IMAGE_CLASSES = (OPACITY, NOT_NORMAL, NORMAL)


@dataclass(frozen=True)
class SplitData:
    """The studies of one split.

    Attributes:
        index: the rows of these studies in the index.
        images: their prepared images.
        boxes: true boxes ``[N, 4]`` xyxy in pixels of the original.
        labels: their labels ``[N]``: positions in ``classes``.
        classes: the names of the classes.
        image_size: side of the prepared images.
    """

    index: pd.DataFrame
    images: PreparedImages
    boxes: list[np.ndarray]
    labels: list[np.ndarray]
    classes: tuple[str, ...]
    image_size: int

    def prepared_boxes(self) -> list[npt.NDArray[np.float32]]:
        """Return the true boxes in pixels of the prepared images."""
        sizes = zip(self.index["height"], self.index["width"], strict=True)
        scales = [letterbox_scale(height, width, self.image_size) for height, width in sizes]
        return [(boxes * scale).astype(np.float32) for boxes, scale in zip(self.boxes, scales, strict=True)]

    def dataset(self, augmenter: "Augment | None", seed: int) -> "DetectionDataset":
        """Return the dataset that training and inference take."""
        # Only here: whoever needs the studies and their boxes alone does not wait for PyTorch.
        from pipeline.detection.dataset import UNKNOWN_CLASS, DetectionDataset

        numbers = {name: number for number, name in enumerate(IMAGE_CLASSES)}
        studies = zip(self.index["class"], self.boxes, strict=True)
        # Boxes of other classes than the challenge's one are opacities to the image-level head.
        classes = [numbers.get(name, UNKNOWN_CLASS if name == "" or not len(boxes) else 0) for name, boxes in studies]
        ids = self.index["patientId"].to_list()
        return DetectionDataset(self.images, self.prepared_boxes(), augmenter, seed, classes, ids, self.labels)


def read_inputs(
    params: Params, prepared: Path = PREPARED, splits_file: Path = SPLITS_FILE, fold: int | None = None
) -> dict[str, SplitData]:
    """Read the three splits, and ``leaked`` if ``split.leaked`` asked for it; with ``fold``, that fold is val.

    Raises:
        UserError: a file is missing or damaged, a patient is in two splits, or the prepared data do not have
            the size, channels and classes of ``params``.
    """
    section = params.preprocess
    index = read_index(prepared)
    require_shards(prepared, index)
    splits = read_splits(splits_file, index, fold)
    require_no_leak(index, splits, shared_patients=params.split.shared_patients == "allow")
    parts = {}
    for name in (*SPLITS, *({LEAKED} & set(splits))):
        rows = index[splits == name].reset_index(drop=True)
        boxes, labels = read_boxes(prepared, rows["patientId"].to_list(), params.class_names)
        images, true = PreparedImages(prepared, rows), [xyxy(box) for box in boxes]
        parts[name] = SplitData(rows, images, true, labels, params.class_names, section.image_size)
    _require_shape(prepared, next(data.images[0] for data in parts.values() if len(data.images)), section)
    return parts


def out_of_fold(folds: Sequence[SplitData], prepared: Path = PREPARED) -> SplitData:
    """Return the studies of all folds as one, in the order of the folds."""
    index = pd.concat([fold.index for fold in folds], ignore_index=True)
    boxes = [boxes for fold in folds for boxes in fold.boxes]
    labels = [labels for fold in folds for labels in fold.labels]
    images = PreparedImages(prepared, index)
    return SplitData(index, images, boxes, labels, folds[0].classes, folds[0].image_size)


def _require_shape(prepared: Path, image: npt.NDArray[np.uint8], section: PreprocessParams) -> None:
    """Check the images' shape: DVC ensures it, but a command started by hand may find images of other params."""
    shape = np.atleast_3d(image).shape
    asked = (section.image_size, section.image_size, len(section.channels))
    if shape != asked:
        raise UserError(
            f"{prepared}: has images of {shape[0]} pixels and {shape[2]} channels, but preprocess.image_size is"
            f" {section.image_size} and preprocess.channels {list(section.channels)}; run `dvc repro split` first"
        )
