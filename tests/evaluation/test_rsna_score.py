import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.evaluation.bootstrap import stable_threshold
from pipeline.evaluation.results import image_result
from pipeline.evaluation.rsna_score import best_threshold, best_thresholds, rsna_score, rsna_scores
from tests.evaluation.conftest import random_results, results


def iou(a, b):
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    shared = width * height
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


def literal_score(images, threshold):
    """FACTS.md, word by word."""
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
            level = 0.40 + 0.05 * step
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


@settings(max_examples=200, deadline=None)
@given(results(), st.sampled_from([0.0, 0.25, 0.55, 0.95]))
def test_is_the_definition(images, threshold):
    assert rsna_score(images, threshold) == pytest.approx(literal_score(images, threshold), abs=1e-12)


@settings(max_examples=100, deadline=None)
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
    # IoU exactly .5: a hit at .40 and .45, and none at .50, since it must be greater.
    half = image_result([[0, 0, 10, 5]], [0.9], truth)
    assert rsna_score([half], 0) == pytest.approx(2 / 8)


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
