import numpy as np
import pytest

from pipeline.data.image_statistics import describe, nearly_empty


def page(value, share, other):
    """Return a 100 x 100 image: ``share`` of it has one grey level, the rest another; neither fills whole rows."""
    pixels = np.full(10_000, value, np.uint8)
    pixels[: round(10_000 * (1 - share))] = other
    return np.random.default_rng(0).permutation(pixels).reshape(100, 100)


@pytest.mark.parametrize(
    ("pixels", "empty"),
    [
        (page(255, 0.99, 0), True),
        (page(0, 0.99, 255), True),
        (page(128, 0.5, 130), True),
        (page(255, 0.5, 0), False),
        (page(0, 0.9, 200), False),
        (np.arange(65536).reshape(256, 256).astype(np.uint8), False),
    ],
)
def test_predict_and_check_judge_alike(pixels, empty, tmp_path):
    (tmp_path / "file").write_bytes(b"any")
    assert nearly_empty(pixels) == describe(tmp_path / "file", pixels)["nearly_empty"] == empty
