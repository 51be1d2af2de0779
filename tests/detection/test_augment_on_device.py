"""Augmentation on the device: exact where it can be, and of the same distribution as that of the loader."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import ks_2samp

from pipeline.detection.augment import Augmenter
from pipeline.detection.augment_on_device import DeviceAugmenter
from pipeline.detection.dataset import Batch
from pipeline.detection.matching import PADDING
from tests.detection.settings import AUGMENT

NONE = replace(AUGMENT, horizontal_flip=0, affine=0, brightness_contrast=0, gamma=0, noise=0)
BOX = [10.0, 20, 40, 50]


def picture():
    """A light square on grey noise that is not alike in all corners."""
    image = np.random.default_rng(0).integers(20, 90, (100, 120)).astype(np.uint8)
    image[20:50, 10:40] = 230
    return image


def batch(count, boxes=(BOX,)):
    images = torch.from_numpy(picture()).expand(count, 1, 100, 120).clone()
    rows = torch.tensor(boxes).expand(count, len(boxes), 4).clone()
    return Batch(
        images, rows, torch.zeros(count, len(boxes), dtype=torch.long), torch.zeros(count), torch.arange(count)
    )


def augmented(settings, given, seed=0):
    torch.manual_seed(seed)
    return DeviceAugmenter(settings)(given)


def test_nothing_asked_nothing_changed():
    given = batch(3)
    given.images[0, 0, :16, :16] = torch.arange(256, dtype=torch.uint8).reshape(16, 16)  # each grey level
    for one, other in zip(augmented(NONE, given), given, strict=True):
        assert torch.equal(one, other)


def test_a_flip_takes_the_box_along():
    given = batch(2)
    changed = augmented(replace(NONE, horizontal_flip=1), given)
    assert torch.equal(changed.images, given.images.flip(-1))
    torch.testing.assert_close(changed.boxes, torch.tensor([80.0, 20, 110, 50]).expand(2, 1, 4))


def test_boxes_stay_on_what_they_are_around():
    """Size, place and flips; a rotated square is larger than the ellipse in it."""
    changed = augmented(replace(NONE, horizontal_flip=0.5, affine=1, rotate=0), batch(40))
    for image, boxes in zip(changed.images, changed.boxes, strict=True):
        rows, columns = np.where(image[0] > 160)
        around = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        np.testing.assert_allclose(boxes[0], around, atol=1.1)


def test_the_random_state_decides():
    first, again, other = (augmented(AUGMENT, batch(2), seed) for seed in (1, 1, 2))
    assert torch.equal(first.images, again.images)
    assert torch.equal(first.boxes, again.boxes)
    assert not torch.equal(first.images, other.images)


def test_each_image_changes_in_its_own_way():
    changed = augmented(AUGMENT, batch(2))
    assert not torch.equal(changed.images[0], changed.images[1])


def test_boxes_that_are_cut_off_become_padding():
    given = batch(200, (BOX, [0.0, 0, 30, 30]))
    changed = augmented(replace(NONE, affine=1, translate=0.3, min_visibility=0.7), given)
    lost = changed.labels == PADDING
    assert 0.05 < lost[:, 1].float().mean() < 0.9
    assert (changed.boxes[lost] == torch.tensor([0.0, 0, 1, 1])).all()
    sides = changed.boxes[~lost][:, 2:] - changed.boxes[~lost][:, :2]
    assert (sides >= 2).all()
    assert (changed.boxes >= 0).all()
    assert (changed.boxes <= torch.tensor([120.0, 100, 120, 100])).all()


def test_padding_stays_padding():
    given = batch(5)
    given.labels[:] = PADDING
    assert (augmented(AUGMENT, given).labels == PADDING).all()


@pytest.mark.parametrize(
    "change",
    [
        {"affine": 1, "rotate": 0, "translate": 0},
        {"affine": 1, "scale": 0, "translate": 0},
        {"affine": 1, "scale": 0, "rotate": 0, "translate": 0.15},
        {"brightness_contrast": 1},
        {"gamma": 1},
        {"noise": 1},
        {"horizontal_flip": 0.5, "affine": 0.8, "brightness_contrast": 0.5, "gamma": 0.3, "noise": 0.2},
    ],
    ids=str,
)
def test_the_distribution_is_that_of_the_loader(change):
    count, settings = 2000, replace(NONE, min_visibility=0.9, **change)
    flat = np.full((100, 120), 60, np.uint8)
    flat[20:70, 10:40] = 200
    box = [10.0, 20, 40, 70]
    given = batch(count, (box,))._replace(images=torch.from_numpy(flat).expand(count, 1, 100, 120))
    changed = augmented(settings, given)
    kept = (changed.labels[:, 0] != PADDING).numpy()
    ours = _described(changed.images[:, 0].numpy(), changed.boxes[:, 0].numpy(), kept)
    augment = Augmenter(settings)
    pairs = [augment(flat, np.array([[*box, 0]], np.float32), seed) for seed in range(count)]
    kept = np.array([len(boxes) == 1 for _, boxes in pairs])
    boxes = np.array([boxes[0, :4] if len(boxes) else box for _, boxes in pairs])
    theirs = _described(np.stack([image for image, _ in pairs]), boxes, kept)
    assert theirs["lost"].mean() == pytest.approx(ours["lost"].mean(), abs=0.04)
    for name, values in theirs.items():
        assert ks_2samp(ours[name].round(1), values.round(1)).pvalue > 1e-3, name


def _described(images, boxes, kept):
    """Return values of each image or kept box that together fix sizes, places, angles, grey levels and noise."""
    x0, y0, x1, y1 = boxes[kept].astype(float).T
    values = images.astype(float)
    return {
        "lost": (~kept).astype(float),
        "left": x0,
        "top": y0,
        "width": x1 - x0,
        "height": y1 - y0,
        "distance": np.hypot((x0 + x1) / 2 - 60, (y0 + y1) / 2 - 50),
        "background": np.median(values, axis=(1, 2)),
        "mean": values.mean((1, 2)),
        "noise": np.abs(np.diff(values[:, 85:, 90:], axis=2)).mean((1, 2)),
    }
