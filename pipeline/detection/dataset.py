"""The data set of prepared images and boxes, and its batches of tensors of one size."""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from pipeline.detection.matching import PADDING

Boxes = npt.NDArray[np.float32]
# Changes an image and its boxes ``[N, 5]``, xyxy and a label, which stays; the third argument is a seed.
Augment = Callable[[npt.NDArray[np.uint8], Boxes, int], tuple[npt.NDArray[np.uint8], Boxes]]
UNKNOWN_CLASS = -1
PADDING_INDEX = -1


class Example(NamedTuple):
    """One image, uint8 ``[H, W]`` or ``[H, W, C]``, and its annotations.

    ``boxes`` are float32 ``[N, 4]`` xyxy with ``labels`` ``[N]``; ``position`` is the image's index in the data set.
    """

    image: npt.NDArray[np.uint8]
    boxes: Boxes
    labels: npt.NDArray[np.int64]
    image_class: int
    position: int


class Batch(NamedTuple):
    """Images uint8 ``[B, C, H, W]``; boxes ``[B, M, 4]`` xyxy; labels ``[B, M]``, -1 for no box.

    ``image_classes`` ``[B]`` are -1 where unknown; ``indices`` ``[B]`` are positions in the data set,
    or -1 in a batch that is only padding.
    """

    images: Tensor
    boxes: Tensor
    labels: Tensor
    image_classes: Tensor
    indices: Tensor

    def to(self, device: torch.device) -> "Batch":
        """Return the batch on ``device``; the indices stay where they are, since nothing there needs them."""
        images, boxes, labels, classes = (part.to(device, non_blocking=True) for part in self[:4])
        return Batch(images, boxes, labels, classes, self.indices)


class DetectionDataset(Dataset[Example]):
    """Images and boxes by position; an image's augmentation depends on seed, epoch and position alone."""

    def __init__(
        self,
        images: Sequence[npt.NDArray[np.uint8]],
        boxes: Sequence[Boxes],
        augmenter: Augment | None,
        seed: int,
        image_classes: Sequence[int] | None = None,
        names: Sequence[str] | None = None,
        labels: Sequence[npt.NDArray[np.int64]] | None = None,
    ) -> None:
        assert len(images) == len(boxes)
        self._labels = labels if labels is not None else [np.zeros(len(one), np.int64) for one in boxes]
        self._classes = image_classes if image_classes is not None else [UNKNOWN_CLASS] * len(images)
        self._images, self._boxes, self._augmenter, self._seed = images, boxes, augmenter, seed

        self._names = names

    def __len__(self) -> int:
        return len(self._images)

    def most_boxes(self) -> int:
        """Return the largest number of boxes of an image."""
        return max(map(len, self._boxes), default=0)

    def names_of(self, positions: Sequence[int]) -> list[str]:
        """Return the ids of the studies at these positions, or the positions if there are no ids."""
        return [self._names[position] if self._names else str(position) for position in positions]

    def __getitem__(self, key: tuple[int, int]) -> Example:
        """Return the example ``index`` as it looks in ``epoch``; ``key`` is (epoch, index), see `EpochBatches`."""
        epoch, index = key
        position, index = (PADDING_INDEX, -1 - index) if index < 0 else (index, index)
        image, boxes, labels = self._images[index], self._boxes[index], self._labels[index]
        if self._augmenter is not None:
            # Seeded by epoch and index, so that a resumed run and any number of workers see the same images.
            seed = int(np.random.SeedSequence([self._seed, epoch, index]).generate_state(1)[0])
            labelled = np.concatenate([boxes, labels[:, None]], 1).astype(np.float32)
            image, labelled = self._augmenter(image, labelled, seed)
            boxes, labels = labelled[:, :4], labelled[:, 4].astype(np.int64)
        return Example(image, boxes, labels, self._classes[index], position)


class EpochBatches(Sampler[list[tuple[int, int]]]):
    """Batches of (epoch, index), from any batch on, in an order that depends on seed and epoch alone.

    In a run of several processes, each takes its part: together their batches are those of one
    process with larger batches. If the last studies do not suffice for all processes, a process gets
    a copy of another one's study, as index ``-1 - index``: padding, which counts for nothing.

    With ``multiple``, an epoch is filled up with its own first studies to a multiple of so many: a step on a rest of
    one or two images would move the weights as far as a step on a whole batch.
    """

    def __init__(
        self, length: int, batch_size: int, seed: int, shuffle: bool, rank: int = 0, world_size: int = 1,
        multiple: int = 1,
    ) -> None:  # fmt: skip
        self._studies, self._size, self._seed, self._shuffle = length, batch_size, seed, shuffle
        self._length = math.ceil(length / multiple) * multiple
        self._rank, self._world_size = rank, world_size
        self._epoch, self._first = 0, 0

    def start_at(self, epoch: int, first: int) -> None:
        """Begin the next pass with batch ``first`` of ``epoch``."""
        self._epoch, self._first = epoch, first

    def __len__(self) -> int:
        return math.ceil(self._length / (self._size * self._world_size)) - self._first

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order = np.arange(self._studies)
        if self._shuffle:
            np.random.default_rng([self._seed, self._epoch]).shuffle(order)
        order = np.resize(order, self._length)  # repeats it from its beginning
        step = self._size * self._world_size
        for start in range(self._first * step, self._length, step):
            shared = order[start : start + step]
            own = shared[self._rank * self._size : (self._rank + 1) * self._size]
            yield [(self._epoch, int(index)) for index in (own if len(own) else -1 - shared[:1])]


def collate(examples: Sequence[Example], rows: int = 1) -> Batch:
    """Stack images and pad their boxes to the largest count in the batch, at least ``rows`` and 1."""
    most = max(1, rows, *(len(example.boxes) for example in examples))
    boxes = np.zeros((len(examples), most, 4), np.float32)
    boxes[..., 2:] = 1  # padding has an area, so that no logarithm of 0 is taken
    labels = np.full((len(examples), most), PADDING, np.int64)
    for row, example in enumerate(examples):
        boxes[row, : len(example.boxes)] = example.boxes
        labels[row, : len(example.boxes)] = example.labels
    images = channels_first([example.image for example in examples])
    classes = np.array([example.image_class for example in examples])
    indices = np.array([example.position for example in examples])
    return Batch(*(torch.from_numpy(part) for part in (images, boxes, labels, classes, indices)))


def channels_first(images: Sequence[npt.NDArray[np.uint8]]) -> npt.NDArray[np.uint8]:
    """Stack images ``[H, W]`` or ``[H, W, C]`` to ``[B, C, H, W]``."""
    batch = np.stack(images)
    return np.ascontiguousarray(batch.reshape(*batch.shape[:3], -1).transpose(0, 3, 1, 2))


def make_loader(dataset: DetectionDataset, batches: EpochBatches, workers: int, rows: int = 1) -> DataLoader[Example]:
    """Return a loader of the batches that ``batches`` lists, in the same order; ``rows`` as in `collate`."""
    return DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=partial(collate, rows=rows),
        pin_memory=torch.cuda.is_available(),
        multiprocessing_context="spawn" if workers else None,
        persistent_workers=workers > 0,
    )
