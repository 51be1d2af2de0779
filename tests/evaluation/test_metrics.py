import contextlib
import io

import numpy as np
import pytest
from hypothesis import given, settings
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from sklearn.metrics import roc_auc_score

from pipeline.evaluation.bootstrap import auroc, patient_weights
from pipeline.evaluation.coco import coco_map
from pipeline.evaluation.ranked import FROC_RATES, average_precision, froc, rank_detections
from pipeline.evaluation.results import has_truth, image_result, image_scores
from pipeline.evaluation.summary import summarize
from tests.evaluation.conftest import random_results, results


def pycoco_map(images):
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
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(found), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats[:3]


@pytest.mark.parametrize("seed", range(4))
def test_map_is_pycocotools_and_our_own(seed):
    images = random_results(60, seed)
    wanted = pycoco_map(images)
    found = coco_map(images)
    np.testing.assert_allclose([found["map"], found["map_50"], found["map_75"]], wanted, atol=1e-6)
    ours = average_precision(rank_detections(images), np.ones(60))
    np.testing.assert_allclose([ours.mean(), ours[0], ours[5]], wanted, atol=1e-6)


@settings(max_examples=60, deadline=None)
@given(results(least=2))
def test_weighted_precision_equals_repeating_images(images):
    weights = np.arange(len(images)) % 3
    repeated = [image for image, weight in zip(images, weights, strict=True) for _ in range(weight)]
    if not any(len(image.truth) for image in repeated):
        return
    ours = average_precision(rank_detections(images), weights.astype(float))
    again = average_precision(rank_detections(repeated), np.ones(len(repeated)))
    # Detections of equal score stand in another order among the repeated images.
    if len({score for image in images for score in image.scores}) == sum(len(image.scores) for image in images):
        np.testing.assert_allclose(ours, again, atol=1e-9)


def test_map_without_detections_and_without_truth():
    truth = image_result([], [], [[0, 0, 5, 5]])
    assert coco_map([truth]) == {"map": 0, "map_50": 0, "map_75": 0}
    assert all(np.isnan(value) for value in coco_map([image_result([[0, 0, 5, 5]], [0.5], [])]).values())


@pytest.mark.parametrize("distinct", [True, False])
def test_auroc_is_scikit_learns(distinct):
    images = random_results(80, 2, distinct)
    scores, positive = image_scores(images), has_truth(images)
    weights = np.random.default_rng(0).integers(0, 4, (5, 80)).astype(float)
    wanted = [roc_auc_score(positive, scores, sample_weight=row) for row in weights]
    np.testing.assert_allclose(auroc(scores, positive, weights), wanted)
    assert np.isnan(auroc(scores, np.zeros(80, bool), weights)).all()


def test_froc_is_the_definition():
    images = random_results(40, 5)
    ranking = rank_detections(images)
    found = froc(ranking, np.ones(40))
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
    keys = ["rsna_score", "map", "map_50", "map_75", "auroc", *(f"froc_{rate:g}" for rate in FROC_RATES)]
    assert [f"froc_{text}" in summary for text in ("0.125", "0.25", "0.5", "1", "2", "4", "8")] == [True] * 7
    for key in keys:
        assert 0 <= summary[f"{key}_low"] <= summary[key] <= summary[f"{key}_high"] <= 1, key
    assert summary["map_50_low"] < summary["map_50_high"]
    # Twice the same images are no more evidence when they are of the same patients.
    twice = summarize(images + images, groups + groups, 0.4, draws=400, seed=0)
    width = summary["rsna_score_high"] - summary["rsna_score_low"]
    assert twice["rsna_score_high"] - twice["rsna_score_low"] == pytest.approx(width, rel=0.05)


def test_what_is_not_defined_is_none():
    nothing = summarize([image_result([[0, 0, 5, 5]], [0.5], [])] * 3, ["a", "b", "c"], 0.1, draws=100, seed=0)
    assert nothing["map"] is nothing["map_low"] is nothing["auroc"] is None
    assert nothing["rsna_score"] == 0
