"""Prepared images and boxes -> batches of tensors of one size."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from pipeline.detection.augment import Augmenter
from pipeline.detection.matching import PADDING

Boxes = npt.NDArray[np.float32]
UNKNOWN_CLASS = -1


class Example(NamedTuple):
    """One image, uint8 ``[H, W]`` or ``[H, W, C]``, and what is known of it.

    ``boxes`` are float32 ``[N, 4]`` xyxy; ``position`` is the image's place in the data set.
    """

    image: npt.NDArray[np.uint8]
    boxes: Boxes
    image_class: int
    position: int


class Batch(NamedTuple):
    """Images uint8 ``[B, C, H, W]``; boxes ``[B, M, 4]`` xyxy; labels ``[B, M]``, -1 for no box.

    ``image_classes`` ``[B]`` are -1 where unknown.
    """

    images: Tensor
    boxes: Tensor
    labels: Tensor
    image_classes: Tensor
    indices: Tensor

    def to(self, device: torch.device) -> "Batch":
        """The batch on ``device``."""
        return Batch(*(part.to(device, non_blocking=True) for part in self))


class DetectionDataset(Dataset[Example]):
    """Images and boxes by position; what a training image looks like depends on the epoch alone."""

    def __init__(
        self,
        images: Sequence[npt.NDArray[np.uint8]],
        boxes: Sequence[Boxes],
        augmenter: Augmenter | None,
        seed: int,
        image_classes: Sequence[int] | None = None,
        names: Sequence[str] | None = None,
    ) -> None:
        assert len(images) == len(boxes)
        self._classes = image_classes if image_classes is not None else [UNKNOWN_CLASS] * len(images)
        self._images, self._boxes, self._augmenter, self._seed = images, boxes, augmenter, seed

        self._names = names

    def __len__(self) -> int:
        return len(self._images)

    def names_of(self, positions: Sequence[int]) -> list[str]:
        """Ids of the studies at these places, or the places where they have none."""
        return [self._names[place] if self._names else str(place) for place in positions]

    def __getitem__(self, key: tuple[int, int]) -> Example:
        """The example ``index`` as it looks in ``epoch``; ``key`` is (epoch, index)."""
        epoch, index = key
        image, boxes = self._images[index], self._boxes[index]
        if self._augmenter is not None:
            # Seeded by place and time: a resumed run and any number of workers see the same images.
            seed = int(np.random.SeedSequence([self._seed, epoch, index]).generate_state(1)[0])
            image, boxes = self._augmenter(image, boxes, seed)
        return Example(image, boxes, self._classes[index], index)


class EpochSampler(Sampler[tuple[int, int]]):
    """Yields (epoch, index) in an order that depends on seed and epoch alone, from any place on."""

    def __init__(self, length: int, seed: int, shuffle: bool) -> None:
        self._length, self._seed, self._shuffle = length, seed, shuffle
        self.epoch, self._first = 0, 0

    def start_at(self, epoch: int, first: int) -> None:
        """Begin the next pass with the study at ``first`` of ``epoch``."""
        self.epoch, self._first = epoch, first

    def __len__(self) -> int:
        return self._length - self._first

    def __iter__(self) -> Iterator[tuple[int, int]]:
        order = np.arange(self._length)
        if self._shuffle:
            np.random.default_rng([self._seed, self.epoch]).shuffle(order)
        return iter([(self.epoch, int(index)) for index in order[self._first :]])


def collate(examples: Sequence[Example]) -> Batch:
    """Stack images and pad their boxes to the batch's largest count, at least 1."""
    most = max(1, *(len(example.boxes) for example in examples))
    boxes = np.zeros((len(examples), most, 4), np.float32)
    boxes[..., 2:] = 1  # padding has an area, so that no logarithm meets a zero
    labels = np.full((len(examples), most), PADDING, np.int64)
    for row, example in enumerate(examples):
        boxes[row, : len(example.boxes)] = example.boxes
        labels[row, : len(example.boxes)] = 0  # one class: opacity
    images = channels_first([example.image for example in examples])
    classes = np.array([example.image_class for example in examples])
    indices = np.array([example.position for example in examples])
    return Batch(*(torch.from_numpy(part) for part in (images, boxes, labels, classes, indices)))


def channels_first(images: Sequence[npt.NDArray[np.uint8]]) -> npt.NDArray[np.uint8]:
    """Stack images ``[H, W]`` or ``[H, W, C]`` to ``[B, C, H, W]``."""
    batch = np.stack(images)
    return np.ascontiguousarray(batch.reshape(*batch.shape[:3], -1).transpose(0, 3, 1, 2))


def make_loader(dataset: DetectionDataset, sampler: EpochSampler, batch_size: int, workers: int) -> DataLoader[Example]:
    """Batches in the sampler's order; the last, smaller batch is kept."""
    return DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=sampler,
        num_workers=workers,
        collate_fn=collate,
        pin_memory=torch.cuda.is_available(),
        multiprocessing_context="spawn" if workers else None,
        persistent_workers=workers > 0,
    )
