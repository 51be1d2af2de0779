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


@pytest.mark.parametrize("change", [
    {"horizontal_flip": 0.5}, {"affine": 0.8, "translate": 0.15}, {"brightness_contrast": 0.7}, {"gamma": 0.6},
    {"noise": 0.5},
    {"horizontal_flip": 0.5, "affine": 0.8, "brightness_contrast": 0.5, "gamma": 0.3, "noise": 0.2},
], ids=str)  # fmt: skip
def test_the_distribution_is_that_of_the_loader(change):
    """Of boxes, of the grey levels of square and background, and of the share of lost boxes."""
    count, settings = 600, replace(NONE, min_visibility=0.9, **change)
    changed = augmented(settings, batch(count))
    ours = [_described(*one) for one in zip(changed.images[:, 0].numpy(), changed.boxes, changed.labels, strict=True)]
    augment, theirs = Augmenter(settings), []
    for seed in range(count):
        image, boxes = augment(picture(), np.array([[*BOX, 0]], np.float32), seed)
        row = boxes[0, :4] if len(boxes) else [0, 0, 1, 1]
        theirs.append(_described(image, row, [0 if len(boxes) else PADDING]))
    described = np.array(ours), np.array(theirs)
    lost = [np.isnan(one[:, 0]).mean() for one in described]
    assert lost[0] == pytest.approx(lost[1], abs=0.06)
    for column in range(described[0].shape[1]):
        pair = [one[~np.isnan(one[:, column]), column].round(1) for one in described]
        assert ks_2samp(*pair).pvalue > 1e-4, column
        # Another mean that the test above would not see, among many values that did not change.
        assert pair[0].mean() == pytest.approx(pair[1].mean(), abs=0.25 * pair[1].std() + 0.6), column


def _described(image, box, labels):
    """Return the box, NaN if it was lost, and the image's mean, spread and roughness."""
    corners = [float("nan")] * 4 if labels[0] == PADDING else [float(side) for side in np.asarray(box).reshape(4)]
    values = image.astype(float)
    return [*corners, values.mean(), values.std(), np.abs(np.diff(values[:, 60:], axis=1)).mean()]
