import numpy as np
import pytest

from pipeline.data.geometry import xyxy
from pipeline.detection.anchor_fit import coverage, fit_shapes
from pipeline.detection.anchors import make_anchors, shape_grid
from pipeline.sources.sample import draw_boxes

DEFAULT = shape_grid((1.0, 2 ** (1 / 3), 2 ** (2 / 3)), (0.5, 1.0, 2.0))


@pytest.fixture(scope="module")
def boxes():
    """Draw boxes like the challenge's, in images of 512 px."""
    rng = np.random.default_rng(0)
    return [xyxy(draw_boxes(512, rng)) for _ in range(200)]


def test_fitting_finds_the_shapes_that_boxes_have():
    corner = np.random.default_rng(0).uniform(0, 50, (300, 2))
    sizes = np.array([[40, 40], [50, 100], [160, 80]])[np.arange(300) % 3]
    shapes = fit_shapes(np.concatenate([corner, corner + sizes], 1), 3, seed=0)
    # 40 = 1.25 x 32; sqrt(50 x 100) = 1.105 x 64; sqrt(160 x 80) = 1.768 x 64; a ratio is height / width.
    assert np.array(shapes) == pytest.approx(np.array([[1.1049, 2.0], [1.25, 1.0], [1.7678, 0.5]]), abs=1e-3)
    assert len(fit_shapes([[0, 0, 10, 10], [5, 5, 15, 15]], 9, seed=0)) == 1
    with pytest.raises(ValueError, match="no box"):
        fit_shapes(np.zeros((0, 4)), 9, seed=0)


def test_fitted_anchors_suit_the_boxes_better(boxes):
    fitted = fit_shapes(np.concatenate(boxes), 9, seed=0)
    found = [coverage(make_anchors(512, 512, shapes), boxes, 0.5, 0) for shapes in (DEFAULT, fitted)]
    assert found[1].best_iou.mean() > found[0].best_iou.mean() + 0.01
    assert found[1].covered >= found[0].covered > 0.97


def test_coverage_counts_what_no_anchor_reaches():
    anchors = make_anchors(128, 128, [(1.0, 1.0)])
    exact, thin = anchors.boxes[20].numpy(), np.array([10.0, 10, 14, 120])
    found = coverage(anchors, [exact[None], np.zeros((0, 4)), thin[None]], 0.5, 0)
    assert found.best_iou[0] == pytest.approx(1)
    assert found.best_iou[1] < 0.5
    assert found.positives.tolist() == [5, 0]  # its own anchor and the four neighbours, a quarter of its side away
    assert found.covered == 0.5
    lines = found.table().splitlines()
    assert lines[0] == "side_pixels,boxes,covered,mean_best_iou,median_positives"
    assert lines[1].startswith("0 to 64,2,0.500,")
    assert coverage(anchors, [], 0.5, 0).covered == 1
