import cv2
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipeline.data.geometry import letterbox_scale
from pipeline.data.preprocessing import equalize, letterbox, preprocess
from pipeline.data.settings import Preprocessing


def test_equalize_is_opencvs():
    image = np.random.default_rng(0).integers(0, 255, (96, 96), dtype=np.uint8)
    np.testing.assert_array_equal(equalize(image, 2.0, (4, 4)), cv2.createCLAHE(2.0, (4, 4)).apply(image))
    np.testing.assert_array_equal(equalize(image, 0, (4, 4)), image)


def test_clahe_raises_local_contrast():
    faint = np.full((128, 128), 100, np.uint8)
    faint[40:80, 40:80] += 10
    stronger = preprocess(faint, Preprocessing(128, 4.0, (4, 4), ("clahe",))).astype(int)
    assert stronger[60, 60] - stronger[20, 20] > 10


@given(st.integers(1, 300), st.integers(1, 300))
def test_letterbox_keeps_the_shape_of_things(height, width):
    image = np.full((height, width), 200, np.uint8)
    result = letterbox(image, 128)
    scale = letterbox_scale(height, width, 128)
    assert result.shape == (128, 128)
    assert round(max(height, width) * scale, 6) == 128
    rows, columns = max(1, round(height * scale)), max(1, round(width * scale))
    assert (result[:rows, :columns] == 200).all()
    assert result[rows:].max(initial=0) == 0
    assert result[:, columns:].max(initial=0) == 0


def test_padding_takes_no_part_in_the_equalisation():
    image = np.random.default_rng(0).integers(90, 110, (100, 50), dtype=np.uint8)
    wide = preprocess(image, Preprocessing(64, 2.0, (2, 2), ("clahe",)))
    alone = equalize(np.ascontiguousarray(letterbox(image, 64)[:, :32]), 2.0, (2, 2))
    np.testing.assert_array_equal(wide[:, :32], alone)
    assert wide[:, 32:].max() == 0


def test_raw_beside_clahe():
    image = np.random.default_rng(0).integers(90, 110, (100, 50), dtype=np.uint8)
    both = preprocess(image, Preprocessing(64, 2.0, (2, 2), ("clahe", "raw")))
    np.testing.assert_array_equal(both[..., 0], preprocess(image, Preprocessing(64, 2.0, (2, 2), ("clahe",))))
    np.testing.assert_array_equal(both[..., 1], letterbox(image, 64))
