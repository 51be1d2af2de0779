"""Calibration: the maximum-likelihood line on the logit, a ranking that stays, and images without a detection."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit, logit
from sklearn.linear_model import LogisticRegression

from pipeline.metrics.bootstrap import Metrics
from pipeline.metrics.calibration import (
    IDENTITY,
    Calibration,
    ScoreMap,
    calibrated,
    fit_calibration,
    fit_map,
    image_probabilities,
)
from pipeline.metrics.image_level import calibration_error
from pipeline.metrics.results import image_result

slopes, intercepts = st.floats(0.05, 2.0), st.floats(-4, 4)


@given(slopes, intercepts, st.lists(st.floats(1e-4, 1 - 1e-4), min_size=2, max_size=20, unique=True))
def test_a_map_keeps_the_ranking_and_has_an_inverse(slope, intercept, scores):
    own = ScoreMap(slope=slope, intercept=intercept)
    ranked = np.sort(scores)
    far_enough = ranked[np.append(True, np.diff(ranked) > 1e-9)]
    mapped = own(far_enough)
    assert (np.diff(mapped) > 0).all()
    np.testing.assert_allclose(own.inverse(mapped), far_enough, atol=1e-6)


@given(slopes, intercepts)
def test_the_ends_stay_finite(slope, intercept):
    mapped = ScoreMap(slope=slope, intercept=intercept)(np.array([0.0, 1.0]))
    assert np.isfinite(mapped).all()
    assert 0 <= mapped[0] < mapped[1] <= 1


def test_the_fit_is_that_of_scikit_learn():
    """Platt's smoothed targets are examples of both classes with weights."""
    rng = np.random.default_rng(0)
    scores = rng.beta(2, 5, 400)
    positive = rng.random(400) < expit(2.5 * logit(scores) + 1)
    own = fit_map(scores, positive, "boxes")
    positives, negatives = positive.sum(), (~positive).sum()
    target = np.where(positive, (positives + 1) / (positives + 2), 1 / (negatives + 2))
    z = np.concatenate([logit(scores)] * 2)[:, None]
    labels, weights = np.repeat([1, 0], 400), np.concatenate([target, 1 - target])
    oracle = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000).fit(z, labels, weights)
    assert own.slope == pytest.approx(oracle.coef_[0, 0], rel=1e-3)
    assert own.intercept == pytest.approx(oracle.intercept_[0], rel=1e-3, abs=1e-3)
    assert own.slope == pytest.approx(2.5, abs=0.5)


@pytest.mark.parametrize(
    ("scores", "positive", "line"),
    [
        ([], [], "val has 0 right and 0 wrong"),
        ([0.4], [True], "val has 1 right and 0 wrong"),
        ([0.4, 0.6], [False, False], "val has 0 right and 2 wrong"),
        ([0.2, 0.3, 0.8, 0.9], [True, True, False, False], "higher scores are not right more often"),
    ],
)
def test_too_little_to_fit_leaves_the_scores(caplog, scores, positive, line):
    assert fit_map(np.array(scores), np.array(positive, bool), "boxes") == IDENTITY
    assert line in caplog.text


def test_separated_examples_give_a_finite_slope():
    own = fit_map(np.array([0.1] * 20 + [0.9] * 20), np.array([False] * 20 + [True] * 20), "boxes")
    assert 0.5 < own.slope < 10
    assert 0.9 < own(np.array([0.9]))[0] < 0.99


def _images(count, seed):
    """Make images whose network gives right boxes lower scores than their share; a third has no detection."""
    rng = np.random.default_rng(seed)
    images = []
    for _ in range(count):
        truth = [[10, 10, 50, 60]] if rng.random() < 0.4 else []
        boxes, scores = [], []
        if rng.random() < 0.67 or truth:
            right = bool(truth) and rng.random() < 0.8
            boxes = [[10, 10, 50, 58]] if right else [[100, 100, 140, 150]]
            scores = [float(np.clip(rng.normal(0.4 if right else 0.15, 0.1), 0.051, 0.95))]
        images.append(image_result(boxes, scores, truth))
    return images


def test_probabilities_of_new_images_are_right_and_rankings_stay():
    fitted = fit_calibration(_images(600, 0), 0.05)
    new = _images(600, 1)
    after = [calibrated(image, fitted) for image in new]
    ones = np.ones((1, len(new)))
    threshold = float(fitted.box(np.array(0.25)))
    before, now = Metrics(new, 0.25).draws(ones), Metrics(after, threshold, fitted).draws(ones)
    assert before["calibration_error"][0] > 0.15
    assert now["calibration_error"][0] < 0.08
    assert now["calibration_error_before"][0] == pytest.approx(before["calibration_error"][0], abs=1e-6)
    for name in before.keys() - {"calibration_error"}:
        np.testing.assert_array_equal(before[name], now[name], err_msg=name)


def test_an_image_without_a_detection_has_a_probability():
    fitted = Calibration(box=IDENTITY, image=ScoreMap(slope=1.0, intercept=1.0), no_box=0.02)
    empty, low = image_result([], [], []), image_result([[0, 0, 5, 5]], [0.03], [])
    probabilities = image_probabilities([empty, low], fitted)
    assert 0 < probabilities[0] < probabilities[1] < 0.1
    assert image_probabilities([empty, low], None).tolist() == [0.0, 0.03]
    assert calibration_error(probabilities, np.array([False, False]), np.ones((1, 2)))[0] > 0
