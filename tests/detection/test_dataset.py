from dataclasses import replace

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric

from pipeline.detection.augment import Augmenter
from pipeline.detection.dataset import PADDING_INDEX, DetectionDataset, EpochBatches, collate, make_loader
from pipeline.detection.inference import _gathered
from pipeline.detection.matching import PADDING
from tests.detection.settings import AUGMENT


def test_batches_are_of_one_size(squares):
    batch = collate([DetectionDataset(*squares, None, 0)[0, index] for index in range(5)])
    assert batch.images.shape == (5, 1, 128, 128)
    assert batch.images.dtype == torch.uint8
    assert batch.boxes.shape == (5, 1, 4)
    assert batch.labels.flatten().tolist() == [-1, 0, 0, 0, -1]
    assert batch.indices.tolist() == [0, 1, 2, 3, 4]
    np.testing.assert_array_equal(batch.boxes[1], squares[1][1])


def test_channels_come_first(squares):
    images, boxes = squares
    both = DetectionDataset([np.stack([image, 255 - image], -1) for image in images], boxes, None, 0)
    batch = collate([both[0, index] for index in range(2)])
    np.testing.assert_array_equal(batch.images[1, 0], images[1])
    np.testing.assert_array_equal(batch.images[1, 1], 255 - images[1])


def test_a_batch_without_any_box(squares):
    batch = collate([DetectionDataset(*squares, None, 0)[0, index] for index in (0, 4)])
    assert batch.boxes.shape == (2, 1, 4)
    assert (batch.labels == -1).all()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # on one core
def test_workers_see_the_same_images(squares):
    def batches(workers, epoch):
        sampler = EpochBatches(len(squares[0]), 4, 3, shuffle=True)
        sampler.start_at(epoch, 0)
        return list(make_loader(DetectionDataset(*squares, Augmenter(AUGMENT), 1), sampler, workers))

    here, there, later = batches(0, 2), batches(2, 2), batches(0, 3)
    for one, other in zip(here, there, strict=True):
        for part, again in zip(one, other, strict=True):
            assert torch.equal(part, again)
    assert not torch.equal(here[0].indices, later[0].indices)
    assert sorted(torch.cat([batch.indices for batch in here]).tolist()) == list(range(16))


def test_the_last_batch_is_kept(squares):
    loader = make_loader(DetectionDataset(*squares, None, 0), EpochBatches(16, 5, 0, shuffle=False), 0)
    assert [len(batch.images) for batch in loader] == [5, 5, 5, 1]


@pytest.mark.parametrize(("length", "size", "world_size"), [(16, 4, 2), (37, 4, 3), (9, 4, 2), (5, 8, 2), (3, 1, 2)])
def test_processes_share_the_batches_of_a_larger_one(length, size, world_size):
    def batches(rank):
        part = EpochBatches(length, size, 7, True, rank, world_size)
        part.start_at(2, 0)
        assert len(list(part)) == len(part)
        return list(part)

    shares = [batches(rank) for rank in range(world_size)]
    assert len({len(share) for share in shares}) == 1
    whole = EpochBatches(length, size * world_size, 7, True)
    whole.start_at(2, 0)
    for together, *own in zip(whole, *shares, strict=True):
        assert [key for part in own for key in part if key[1] >= 0] == together
        for part in own:  # a batch never mixes images and padding
            assert all(key[1] >= 0 for key in part) or len(part) == 1
    later = EpochBatches(length, size, 7, True, 0, world_size)
    later.start_at(2, 1)
    assert list(later) == shares[0][1:]


def test_padding_is_marked(squares):
    dataset = DetectionDataset(*squares, None, 0)
    batch = collate([dataset[0, -1 - 3]])
    assert batch.indices.tolist() == [PADDING_INDEX]
    np.testing.assert_array_equal(batch.images[0, 0], squares[0][3])


@pytest.mark.parametrize(("length", "size", "accumulate", "world_size"), [(37, 4, 1, 1), (37, 4, 3, 2), (3, 4, 2, 2)])
def test_an_epoch_is_filled_up_to_whole_steps(length, size, accumulate, world_size):
    images = size * accumulate * world_size
    shares = []
    for rank in range(world_size):
        batches = EpochBatches(length, size, 7, True, rank, world_size, images)
        batches.start_at(1, 0)
        shares.append([[index for _, index in batch] for batch in batches])
        assert all(len(batch) == size for batch in shares[-1])
        assert len(shares[-1]) % accumulate == 0
    order = [index for batches in zip(*shares, strict=True) for batch in batches for index in batch]
    assert sorted(order[:length]) == list(range(length))  # every study once, and then the first ones again
    assert order[length:] == (order[:length] * images)[: len(order) - length]
    assert len(order) - length < images


def test_batches_and_augmented_images_keep_the_labels():
    images = [np.full((128, 128), 90, np.uint8)] * 2
    boxes = [np.array([[10, 10, 40, 40], [60, 60, 90, 90]], np.float32), np.zeros((0, 4), np.float32)]
    labels = [np.array([2, 1]), np.zeros(0, np.int64)]
    for augmenter in (None, Augmenter(replace(AUGMENT, affine=0, horizontal_flip=0))):
        data = DetectionDataset(images, boxes, augmenter, 0, labels=labels)
        batch = collate([data[0, 0], data[0, 1]])
        assert batch.labels.tolist() == [[2, 1], [PADDING, PADDING]]
        assert batch.boxes[0].tolist() == boxes[0].tolist()


def test_processes_exchange_the_labels_of_their_detections(tmp_path):
    torch.distributed.init_process_group("gloo", f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        fabric = Fabric(accelerator="cpu", devices=1)
        own = {"boxes": torch.rand(2, 4), "scores": torch.tensor([0.9, 0.5]), "labels": torch.tensor([3, 0])}
        none = {"boxes": torch.zeros(0, 4), "scores": torch.zeros(0), "labels": torch.zeros(0, dtype=torch.int64)}
        back = _gathered(fabric, [own, none], torch.tensor([1, 0]), 2, 5)
    finally:
        torch.distributed.destroy_process_group()
    assert back[1]["labels"].tolist() == [3, 0]
    assert torch.equal(back[1]["boxes"], own["boxes"])
    assert len(back[0]["labels"]) == 0
