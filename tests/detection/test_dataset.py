import numpy as np
import pytest
import torch

from pipeline.detection.augment import Augmenter, AugmentSettings
from pipeline.detection.dataset import DetectionDataset, EpochSampler, collate, make_loader

AUGMENT = AugmentSettings(0.5, 1, 0.2, 0.1, 5, 1, 0.2, 0.2, 1, 1, 0.3)


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
def test_workers_see_the_same_images(squares):
    def batches(workers, epoch):
        sampler = EpochSampler(len(squares[0]), 3, shuffle=True)
        sampler.epoch = epoch
        return list(make_loader(DetectionDataset(*squares, Augmenter(AUGMENT), 1), sampler, 4, workers))

    here, there, later = batches(0, 2), batches(2, 2), batches(0, 3)
    for one, other in zip(here, there, strict=True):
        for part, again in zip(one, other, strict=True):
            assert torch.equal(part, again)
    assert not torch.equal(here[0].indices, later[0].indices)
    assert sorted(torch.cat([batch.indices for batch in here]).tolist()) == list(range(16))


def test_the_last_batch_is_kept(squares):
    loader = make_loader(DetectionDataset(*squares, None, 0), EpochSampler(16, 0, shuffle=False), 5, 0)
    assert [len(batch.images) for batch in loader] == [5, 5, 5, 1]
