import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.metrics import matching
from pipeline.metrics.bootstrap import Metrics, stable_threshold
from pipeline.metrics.matching import match
from pipeline.metrics.ranking import FROC_RATES
from pipeline.metrics.results import image_result
from pipeline.metrics.rsna_score import IOU_THRESHOLDS, best_threshold, best_thresholds, rsna_score, rsna_scores
from pipeline.reports.curves import THRESHOLDS, curve_tables
from tests.metrics.conftest import random_results, results


def iou(a, b):
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    shared = width * height
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


def literal_score(images, threshold):
    """Compute the score step by step, as the evaluation page of the challenge defines it."""
    scores = []
    for image in images:
        found = [tuple(box) for box, score in zip(image.boxes, image.scores, strict=True) if score > threshold]
        truth = [tuple(box) for box in image.truth]
        if not found and not truth:
            continue
        if not found or not truth:
            scores.append(0.0)
            continue
        values = []
        for step in range(8):
            level = (40 + 5 * step) / 100
            free = list(truth)
            hits = 0
            for box in found:
                overlapping = [other for other in free if iou(box, other) > level]
                if overlapping:
                    free.remove(max(overlapping, key=lambda other: iou(box, other)))
                    hits += 1
            values.append(hits / (hits + (len(found) - hits) + (len(truth) - hits)))
        scores.append(sum(values) / 8)
    return sum(scores) / len(scores) if scores else 0.0


@settings(max_examples=200)
@given(results(), st.sampled_from([0.0, 0.25, 0.55, 0.95]))
def test_is_the_definition(images, threshold):
    assert rsna_score(images, threshold) == pytest.approx(literal_score(images, threshold), abs=1e-12)


@settings(max_examples=100)
@given(results())
def test_no_threshold_is_better_than_the_best(images):
    threshold, score = best_threshold(images)
    assert rsna_score(images, threshold) == pytest.approx(score)
    for other in np.arange(0, 1, 0.05):
        assert literal_score(images, other) <= score + 1e-12


def test_cases_of_the_definition():
    truth = [[0, 0, 10, 10]]
    same = image_result(truth, [0.9], truth)
    assert rsna_score([same], 0.5) == 1
    assert rsna_score([image_result([], [], truth)], 0) == 0
    assert rsna_score([image_result(truth, [0.9], [])], 0) == 0
    assert np.isnan(rsna_scores([image_result([], [], [])], 0)).all()
    assert rsna_score([same, image_result([], [], [])], 0.5) == 1
    assert rsna_score([same, image_result(truth, [0.9], [])], 0.5) == 0.5
    # An IoU of exactly .5 is a hit at .40 and .45 and none at .50, since it must be greater.
    half = image_result([[0, 0, 10, 5]], [0.9], truth)
    assert rsna_score([half], 0) == pytest.approx(2 / 8)


def test_every_threshold_is_the_number_that_it_is_called():
    assert IOU_THRESHOLDS.tolist() == [0.4, 0.45, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75]
    assert matching.IOU_THRESHOLDS.tolist() == [0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95]
    assert THRESHOLDS.tolist() == [float(f"{number / 100:.2f}") for number in range(101)]
    assert FROC_RATES == (0.125, 0.25, 0.5, 1, 2, 4, 8)
    # An IoU of exactly .65 is no hit where it must be greater; one of exactly .9 is a hit where it must be reached.
    truth = [[0, 0, 10, 20]]
    assert rsna_score([image_result([[0, 0, 10, 13]], [0.9], truth)], 0) == 5 / 8
    assert match(image_result([[0, 0, 10, 18]], [0.9], truth), (0, 1e10)).hit.sum() == 9


score_of_any_sign = st.sampled_from([-3.0, -0.5, 0.0, 5e-324, 0.5, 1.0, 7.0])


@st.composite
def results_of_any_score(draw):
    images = []
    for image in draw(results()):
        scores = draw(st.lists(score_of_any_sign, min_size=len(image.boxes), max_size=len(image.boxes)))
        images.append(image_result(image.boxes, scores, image.truth))
    return images


@settings(max_examples=200)
@given(results_of_any_score())
def test_the_best_threshold_keeps_what_it_must_whatever_the_scores(images):
    threshold, score = best_threshold(images)
    assert rsna_score(images, threshold) == pytest.approx(score)
    for other in (-9.0, -1.0, -0.1, 0.0, 1e-9, 0.7, 2.0):
        assert literal_score(images, other) <= score + 1e-12


@settings(max_examples=200)
@given(results_of_any_score(), st.sampled_from([-np.inf, -4.0, -0.5, 0.0, 0.5, 1.0]))
def test_an_image_without_detections_says_nothing_at_any_threshold(images, threshold):
    said = [bool((image.scores > threshold).any()) for image in images]
    positive = [len(image.truth) > 0 for image in images]
    found = Metrics(images, threshold).draws(np.ones((1, len(images))))
    wanted = {
        "sensitivity": [one for one, has in zip(said, positive, strict=True) if has],
        "specificity": [not one for one, has in zip(said, positive, strict=True) if not has],
    }
    for key, values in wanted.items():
        assert found[key][0] == pytest.approx(np.mean(values) if values else np.nan, nan_ok=True)
    # An image without detections ranks below all others, and its score as a probability is 0.
    best = [max(image.scores, default=-np.inf) for image in images]
    pairs = [(a > b) + (a == b) / 2 for a, x in zip(best, positive, strict=True) if x
             for b, y in zip(best, positive, strict=True) if not y]  # fmt: skip
    assert found["auroc"][0] == pytest.approx(np.mean(pairs) if pairs else np.nan, nan_ok=True)
    assert np.isfinite(found["calibration_error"][0])
    tables = curve_tables({"test": images})
    assert tables["calibration"]["images"].sum() == len(images)
    assert np.isfinite(tables["roc"][["false_positive_rate", "sensitivity"]].to_numpy(float)).all()


def test_weights_count_images():
    images = random_results(12, seed=3)
    weights = np.zeros((1, 12))
    weights[0, [1, 5]] = [2, 1]
    threshold, score = (values[0] for values in best_thresholds(images, weights))
    repeated = [images[1], images[1], images[5]]
    assert score == pytest.approx(best_threshold(repeated)[1])
    assert rsna_score(repeated, threshold) == pytest.approx(score)


def test_the_stable_threshold_is_near_the_best_where_it_matters():
    images = random_results(300, seed=1)
    groups = [str(number) for number in range(300)]
    threshold = stable_threshold(images, groups, 200, 0)
    assert rsna_score(images, threshold) > best_threshold(images)[1] - 0.02
    assert stable_threshold(images, groups, 200, 0) == threshold


def test_nothing_found_reports_nothing():
    nothing = [image_result([], [], [[0, 0, 5, 5]]), image_result([], [], [])]
    assert best_threshold(nothing) == (1.0, 0.0)
    assert stable_threshold(nothing, ["a", "b"], 10, 0) == 1.0
