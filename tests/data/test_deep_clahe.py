"""CLAHE of 16-bit images: its curve must be that of OpenCV's 8-bit CLAHE, but with finer steps."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data.preprocessing import equalize, preprocess
from pipeline.data.settings import Preprocessing


def _texture(height, width, seed):
    noise = np.random.default_rng(seed).random((height, width)).astype(np.float32)
    return cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 3), None, 0, 1, cv2.NORM_MINMAX)


@settings(deadline=None, max_examples=40)
@given(
    height=st.integers(20, 140), width=st.integers(20, 140), columns=st.integers(1, 9), rows=st.integers(1, 9),
    limit=st.sampled_from([0.5, 1.0, 2.0, 4.0, 40.0]), seed=st.integers(0, 9),
)  # fmt: skip
def test_an_8_bit_image_in_16_bits_is_equalised_as_opencv_does(height, width, columns, rows, limit, seed):
    image = np.round(_texture(height, width, seed) * 255).astype(np.uint8)
    wanted = cv2.createCLAHE(limit, (columns, rows)).apply(image)
    found = equalize(image.astype(np.uint16) * 257, limit, (columns, rows))
    assert found.dtype == np.uint8
    # OpenCV rounds the curves of the tiles before it interpolates between them.
    assert np.abs(found.astype(int) - wanted).max() <= 1


def test_faint_structure_that_8_bits_lose_is_kept():
    """A ramp over 16 of the 256 levels has only 16 steps in 8 bits, no matter how far they are stretched."""
    ramp = np.tile(np.linspace(100, 116, 256), (256, 1)) / 255
    deep = np.round(ramp * 65535).astype(np.uint16)
    settings = Preprocessing(256, 8.0, (1, 1), ("clahe",))
    shallow = preprocess(np.round(ramp * 255).astype(np.uint8), settings)
    found = preprocess(deep, settings)
    assert len(np.unique(found)) > 3 * len(np.unique(shallow))
    assert (np.diff(found[0].astype(int)) >= 0).all()


def test_a_deep_image_looks_like_its_8_bit_copy():
    image = _texture(256, 256, 1)
    settings = Preprocessing(256, 2.0, (8, 8), ("clahe",))
    shallow = preprocess(np.round(image * 255).astype(np.uint8), settings).astype(float)
    deep = preprocess(np.round(image * 65535).astype(np.uint16), settings).astype(float)
    naive = cv2.createCLAHE(2.0, (8, 8)).apply(np.round(image * 65535).astype(np.uint16)) / 257
    assert np.abs(deep - shallow).mean() < 2
    # With 16 bits and an image of this size, OpenCV's own CLAHE has no contrast limit.
    assert np.abs(naive - shallow).mean() > 8


def test_channels_of_a_deep_image_are_8_bit():
    image = np.round(_texture(100, 150, 2) * 65535).astype(np.uint16)
    both = preprocess(image, Preprocessing(128, 2.0, (4, 4), ("clahe", "raw")))
    assert both.dtype == np.uint8
    assert both.shape == (128, 128, 2)
    resized = cv2.resize(image, (128, 85), interpolation=cv2.INTER_AREA)
    assert np.abs(both[:85, :, 1] - resized / 257).max() <= 0.5


@pytest.mark.parametrize("value", [0, 65535])
def test_the_ends_of_the_range(value):
    assert equalize(np.full((64, 64), value, np.uint16), 2.0, (4, 4)).dtype == np.uint8
