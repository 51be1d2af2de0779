import contextlib
import io
import time

import numpy as np
import pytest
from hypothesis import given, settings
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from sklearn.metrics import average_precision_score, roc_auc_score

from pipeline.evaluation.summary import summarize
from pipeline.metrics.bootstrap import Metrics, paired_difference, patient_weights
from pipeline.metrics.image_level import auroc, calibration_error, image_average_precision, reliability
from pipeline.metrics.ranking import FROC_RATES, froc, rank_detections
from pipeline.metrics.results import has_truth, image_result, image_scores
from tests.metrics.conftest import random_results, results

# In the order of pycocotools' statistics.
KEYS = ("map", "map_50", "map_75", "map_small", "map_medium", "map_large", "mar_1", "mar_10", "mar_100")


def metrics_of(images):
    return {key: float(values[0]) for key, values in Metrics(images, 0.5).draws(np.ones((1, len(images)))).items()}


def pycocotools_metrics(images):
    truth = COCO()
    annotations = [
        {"id": 0, "image_id": number, "category_id": 1, "iscrowd": 0, "area": float(np.prod(box[2:] - box[:2])),
         "bbox": [box[0], box[1], box[2] - box[0], box[3] - box[1]]}
        for number, image in enumerate(images) for box in image.truth
    ]  # fmt: skip
    for number, annotation in enumerate(annotations):
        annotation["id"] = number + 1
    truth.dataset = {
        "images": [{"id": number} for number in range(len(images))],
        "annotations": annotations,
        "categories": [{"id": 1}],
        "info": {},
    }
    found = [
        {"image_id": number, "category_id": 1, "score": float(score),
         "bbox": [box[0], box[1], box[2] - box[0], box[3] - box[1]]}
        for number, image in enumerate(images) for box, score in zip(image.boxes, image.scores, strict=True)
    ]  # fmt: skip
    # It cannot load an empty list. A detection of score 0 that matches no box changes no metric.
    found = found or [{"image_id": 0, "category_id": 1, "bbox": [-2.0, -2.0, 1.0, 1.0], "score": 0.0}]
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(found), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    values = dict(zip(KEYS, evaluation.stats[: len(KEYS)], strict=True))
    return {key: np.nan if value == -1 else value for key, value in values.items()}


@pytest.mark.parametrize("scale", [0.5, 1, 5])  # together boxes of all sizes; .5 and 5 give one size each
@pytest.mark.parametrize("whole", [False, True])  # detections on whole pixels, so that overlaps can be equal
@pytest.mark.parametrize("seed", range(3))
def test_coco_metrics_are_those_of_pycocotools(seed, whole, scale):
    images = [
        image_result((image.boxes * scale).round() if whole else image.boxes * scale, image.scores, image.truth * scale)
        for image in random_results(60, seed)
    ]
    ours = metrics_of(images)
    for key, value in pycocotools_metrics(images).items():
        assert ours[key] == pytest.approx(value, abs=1e-6, nan_ok=True), key


@settings(max_examples=60)
@given(results())
def test_coco_metrics_are_those_of_pycocotools_on_made_cases(images):
    if not any(len(image.truth) for image in images):
        return
    ours = metrics_of(images)
    for key, value in pycocotools_metrics(images).items():
        assert ours[key] == pytest.approx(value, abs=1e-6, nan_ok=True), key


@settings(max_examples=60)
@given(results(least=2))
def test_weighted_precision_equals_repeating_images(images):
    weights = np.arange(len(images)) % 3
    repeated = [image for image, weight in zip(images, weights, strict=True) for _ in range(weight)]
    if not any(len(image.truth) for image in repeated):
        return
    # Among the repeated images, detections of equal score are in another order.
    if len({score for image in images for score in image.scores}) < sum(len(image.scores) for image in images):
        return
    ours = Metrics(images, 0.4).draws(weights[None].astype(float))
    again = Metrics(repeated, 0.4).draws(np.ones((1, len(repeated))))
    for key, value in again.items():
        assert ours[key][0] == pytest.approx(value[0], abs=1e-9, nan_ok=True), key


def test_map_without_detections_and_without_truth():
    truth = image_result([], [], [[0, 0, 5, 5]])
    nothing = metrics_of([truth])
    assert nothing["map"] == nothing["map_50"] == nothing["map_small"] == nothing["mar_100"] == 0
    assert np.isnan(nothing["map_large"])
    without_truth = metrics_of([image_result([[0, 0, 5, 5]], [0.5], [])])
    assert all(np.isnan(without_truth[key]) for key in KEYS)


@pytest.mark.parametrize("distinct", [True, False])
def test_auroc_is_scikit_learns(distinct):
    images = random_results(80, 2, distinct)
    # scikit-learn refuses the -inf of an image without detections.
    scores, positive = np.maximum(image_scores(images), -1), has_truth(images)
    np.testing.assert_array_equal(
        auroc(image_scores(images), positive, np.ones((1, 80))), auroc(scores, positive, np.ones((1, 80)))
    )
    weights = np.random.default_rng(0).integers(0, 4, (5, 80)).astype(float)
    wanted = [roc_auc_score(positive, scores, sample_weight=row) for row in weights]
    np.testing.assert_allclose(auroc(scores, positive, weights), wanted)
    assert np.isnan(auroc(scores, np.zeros(80, bool), weights)).all()
    wanted = [average_precision_score(positive, scores, sample_weight=row) for row in weights]
    np.testing.assert_allclose(image_average_precision(scores, positive, weights), wanted)
    assert np.isnan(image_average_precision(scores, np.zeros(80, bool), weights)).all()


def test_calibration_error_is_the_definition():
    scores = np.array([0.05, 0.12, 0.18, 0.95, 1.0])
    positive = np.array([False, False, True, True, False])
    # Mean score against share of positives: bin 0-.1: .05 against 0; .1-.2: .15 against .5; .9-1: .975 against .5.
    wanted = (1 * 0.05 + 2 * 0.35 + 2 * 0.475) / 5
    assert calibration_error(scores, positive, np.ones((1, 5)))[0] == pytest.approx(wanted)
    mean, share, images = reliability(scores, positive)
    assert mean == pytest.approx([0.05, 0.15, 0.975])
    assert share == pytest.approx([0, 0.5, 0.5])
    assert images.tolist() == [1, 2, 2]
    rng = np.random.default_rng(0)
    scores = rng.uniform(0, 1, 20000)
    assert calibration_error(scores, rng.uniform(0, 1, 20000) < scores, np.ones((1, 20000)))[0] < 0.02


def test_sensitivity_and_specificity_are_of_images_above_the_threshold():
    box = [[0, 0, 9, 9]]
    images = [image_result(box, [score], truth) for score, truth in ((0.9, box), (0.4, box), (0.6, []), (0.5, []))]
    found = Metrics([*images, image_result([], [], [])], 0.5).draws(np.ones((1, 5)))
    assert (found["sensitivity"][0], found["specificity"][0]) == (1 / 2, 2 / 3)


def test_a_paired_interval_is_narrower_than_what_two_models_suggest():
    images = random_results(200, 3)
    worse = [image_result(image.boxes + 3, image.scores, image.truth) for image in images]
    groups = [str(number // 2) for number in range(200)]
    better, other = Metrics(images, 0.4), Metrics(worse, 0.4)
    difference, low, high = paired_difference(better, other, groups, 400, 0)["map_50"]
    assert difference == pytest.approx(metrics_of(images)["map_50"] - metrics_of(worse)["map_50"], abs=1e-6)
    assert 0 < low < difference < high
    apart = [one.draws(patient_weights(groups, 400, seed))["map_50"] for one, seed in ((better, 1), (other, 2))]
    assert high - low < 0.9 * np.diff(np.percentile(apart[0] - apart[1], (2.5, 97.5)))
    same = paired_difference(better, better, groups, 100, 0)
    assert all(np.isnan(values).all() or values == (0, 0, 0) for values in same.values())


def test_froc_is_the_definition():
    images = random_results(40, 5)
    ranking = rank_detections(images)
    (found,) = froc(ranking, np.ones((1, 40)))
    for rate, value in zip(FROC_RATES, found, strict=True):
        best = 0.0
        for threshold in [*ranking.scores, 2.0]:
            kept = ranking.scores >= threshold
            if (~ranking.hit[0] & kept).sum() / 40 <= rate:
                best = max(best, (ranking.hit[0] & kept).sum() / ranking.truths.sum())
        assert value == pytest.approx(best)


def test_patients_are_drawn_whole():
    groups = ["a", "b", "a", "c", "b", "a"]
    weights = patient_weights(groups, 500, 0)
    assert (weights[:, 0] == weights[:, 2]).all()
    assert (weights[:, 1] == weights[:, 4]).all()
    per_patient = weights[:, [0, 1, 3]]
    assert (per_patient.sum(1) == 3).all()
    assert abs(per_patient.mean() - 1) < 0.05


def test_summary_has_every_key_and_honest_intervals():
    images = random_results(150, 7)
    groups = [str(number // 2) for number in range(150)]
    summary = summarize(images, groups, 0.4, draws=400, seed=0)
    keys = ["rsna_score", "sensitivity", "specificity", "average_precision", "calibration_error", "froc_mean", "mar_10"]
    keys += ["map", "map_50", "map_75", "auroc", *(f"froc_{rate:g}" for rate in FROC_RATES)]
    assert [f"froc_{text}" in summary for text in ("0.125", "0.25", "0.5", "1", "2", "4", "8")] == [True] * 7
    for key in keys:
        assert 0 <= summary[f"{key}_low"] <= summary[key] <= summary[f"{key}_high"] <= 1, key
    assert summary["map_50_low"] < summary["map_50_high"]
    # The same images twice are no additional evidence, because they are of the same patients.
    twice = summarize(images + images, groups + groups, 0.4, draws=400, seed=0)
    width = summary["rsna_score_high"] - summary["rsna_score_low"]
    assert twice["rsna_score_high"] - twice["rsna_score_low"] == pytest.approx(width, rel=0.05)


def test_what_is_not_defined_is_none():
    nothing = summarize([image_result([[0, 0, 5, 5]], [0.5], [])] * 3, ["a", "b", "c"], 0.1, draws=100, seed=0)
    assert nothing["map"] is nothing["map_low"] is nothing["auroc"] is None
    assert nothing["rsna_score"] == 0


@pytest.mark.slow
def test_intervals_for_3000_images_take_seconds():
    """2,000 draws take less than 20 s of one core; half of that would be enough."""
    images = random_results(3000, 1)
    started = time.process_time()
    summarize(images, [str(number // 2) for number in range(3000)], 0.4, draws=2000, seed=0)
    assert time.process_time() - started < 20
