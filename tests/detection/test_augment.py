from dataclasses import replace

import numpy as np
import pytest

from pipeline.detection.augment import Augmenter
from tests.detection.settings import AUGMENT

NONE = replace(AUGMENT, horizontal_flip=0, affine=0, brightness_contrast=0, gamma=0, noise=0)


@pytest.fixture
def picture():
    image = np.zeros((100, 100), np.uint8)
    image[20:50, 10:40] = 255
    return image, np.array([[10, 20, 40, 50]], np.float32)


def bright(image):
    rows, columns = np.where(image > 128)
    return np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])


def test_nothing_asked_nothing_changed(picture):
    image, boxes = Augmenter(NONE)(*picture, seed=1)
    np.testing.assert_array_equal(image, picture[0])
    np.testing.assert_array_equal(boxes, picture[1])


def test_a_flip_takes_the_box_along(picture):
    image, boxes = Augmenter(replace(NONE, horizontal_flip=1))(*picture, seed=1)
    np.testing.assert_allclose(boxes, [[60, 20, 90, 50]], atol=1e-4)
    np.testing.assert_allclose(boxes[0], bright(image), atol=1e-4)


@pytest.mark.parametrize("seed", range(8))
def test_boxes_stay_on_what_they_are_around(picture, seed):
    image, boxes = Augmenter(replace(NONE, affine=1, rotate=0))(*picture, seed=seed)
    np.testing.assert_allclose(boxes[0], bright(image), atol=1.6)


def test_the_seed_decides(picture):
    augment, other = Augmenter(AUGMENT), Augmenter(AUGMENT)
    first = augment(*picture, seed=7)
    augment(*picture, seed=8)
    for again in (augment(*picture, seed=7), other(*picture, seed=7)):
        np.testing.assert_array_equal(first[0], again[0])
        np.testing.assert_array_equal(first[1], again[1])
    assert (augment(*picture, seed=9)[0] != first[0]).any()
    assert first[0].dtype == np.uint8
    assert first[1].dtype == np.float32


def test_images_without_boxes(picture):
    _, boxes = Augmenter(replace(NONE, affine=1))(picture[0], np.zeros((0, 4), np.float32), seed=0)
    assert boxes.shape == (0, 4)


def test_channels_move_together(picture):
    image, boxes = picture
    settings = replace(NONE, horizontal_flip=1, affine=1, brightness_contrast=1, gamma=1, noise=1)
    both, moved = Augmenter(settings)(np.stack([image, image // 2], -1), boxes, seed=3)
    assert both.shape == (100, 100, 2)
    assert both.dtype == np.uint8
    np.testing.assert_allclose(bright(both[..., 0]), moved[0], atol=3)
    np.testing.assert_allclose(bright(2 * np.minimum(both[..., 1], 127)), moved[0], atol=3)


@pytest.mark.parametrize("seed", range(8))
def test_labels_stay_with_their_boxes(seed):
    image = np.zeros((100, 100), np.uint8)
    boxes = np.array([[5, 5, 25, 25], [0, 60, 8, 90], [30, 70, 90, 90]], np.float32)
    labelled = np.concatenate([boxes, [[7], [3], [5]]], 1).astype(np.float32)
    augmenter = Augmenter(replace(AUGMENT, affine=1, rotate=0, translate=0.3, min_visibility=0.99))
    moved, plain = augmenter(image, labelled, seed)[1], augmenter(image, boxes, seed)[1]
    np.testing.assert_array_equal(moved[:, :4], plain)
    # Whole boxes nearly keep their ratio of sides, by which they are told apart.
    ratio = (moved[:, 3] - moved[:, 1]) / (moved[:, 2] - moved[:, 0])
    wanted = {7: 1.0, 3: 30 / 8, 5: 20 / 60}
    assert ratio == pytest.approx([wanted[int(label)] for label in moved[:, 4]], rel=0.4)


def test_the_transforms_are_independent(picture):
    """All transforms once drew the same numbers: what was flipped was also brighter or darker, and nothing else was."""
    augmenter = Augmenter(replace(NONE, horizontal_flip=0.5, brightness_contrast=0.5, noise=0.5))
    flat = np.full((100, 100), 60, np.uint8)
    found = []
    for seed in range(1000):
        image, boxes = augmenter(flat, picture[1], seed)
        noisy = len(np.unique(image)) > 1
        found.append((boxes[0, 0] > 50, noisy, abs(np.median(image) - 60) > 2))
    assert np.mean(found, axis=0) == pytest.approx(0.5, abs=0.1)
    correlations = np.corrcoef(np.array(found, float).T)[np.triu_indices(3, 1)]
    assert np.abs(correlations).max() < 0.12
