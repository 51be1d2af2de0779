"""Metrics of several classes: those of each class alone, and their means."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.evaluation.subgroups import subgroup_table
from pipeline.evaluation.summary import COUNTS, OF_EACH_CLASS, summarize
from pipeline.metrics.bootstrap import Metrics
from pipeline.metrics.calibration import Calibration, ScoreMap, calibrated, image_probabilities_of
from pipeline.metrics.results import each_class, image_result, keep, reported
from pipeline.metrics.rsna_score import image_rsna_scores, rsna_scores
from pipeline.reports.curves import curve_tables
from pipeline.reports.examples import pick_examples
from tests.metrics.conftest import random_results, results

CLASSES = ("opacity", "Nodule/Mass")


def together(first, second):
    """Return images with the detections and boxes of both, the second's as class 1."""
    joined = []
    for a, b in zip(first, second, strict=True):
        labels, true = (
            np.repeat([0, 1], [len(a.scores), len(b.scores)]),
            np.repeat([0, 1], [len(a.truth), len(b.truth)]),
        )
        joined.append(image_result(np.concatenate([a.boxes, b.boxes]), np.concatenate([a.scores, b.scores]),
                                   np.concatenate([a.truth, b.truth]), labels, true))  # fmt: skip
    return joined


def same(one, other):
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in ("boxes", "scores", "truth"))


@given(st.data())
def test_each_class_is_as_if_it_were_alone(data):
    first = data.draw(results(least=3, most=3))
    second = data.draw(results(least=3, most=3))
    parts = each_class(together(first, second), 2)
    assert all(same(*pair) for pair in zip(parts[0], first, strict=True))
    assert all(same(*pair) for pair in zip(parts[1], second, strict=True))


def test_metrics_are_means_over_the_classes():
    first, second = random_results(80, seed=1), random_results(80, seed=2)
    weights = np.random.default_rng(0).integers(0, 3, (5, 80)).astype(float)
    found = Metrics(together(first, second), [0.3, 0.6]).draws(weights)
    alone = [Metrics(first, 0.3).draws(weights), Metrics(second, 0.6).draws(weights)]
    for key, values in found.items():
        np.testing.assert_allclose(values, (alone[0][key] + alone[1][key]) / 2, err_msg=key)


def test_a_class_without_boxes_does_not_count_where_it_is_not_defined():
    first = random_results(40, seed=1)
    none = [image_result([], [], []) for _ in first]
    found = summarize(together(first, none), [str(n) for n in range(40)], [0.3, 0.3], 100, 0, classes=CLASSES)
    alone = summarize(first, [str(n) for n in range(40)], 0.3, 100, 0)
    assert found["map"] == alone["map"]
    assert found["auroc"] == alone["auroc"]
    assert found["Nodule/Mass/map"] is None
    assert found["Nodule/Mass/boxes"] == 0


def test_the_summary_has_each_class():
    first, second = random_results(60, seed=1), random_results(60, seed=2)
    groups = [str(number // 2) for number in range(60)]
    found = summarize(together(first, second), groups, [0.3, 0.6], 100, 0, classes=CLASSES)
    alone = summarize(second, groups, 0.6, 100, 0)
    for key in OF_EACH_CLASS:
        for end in ("", "_low", "_high"):
            assert found[f"Nodule/Mass/{key}{end}"] == alone[f"{key}{end}"], key
    assert found["Nodule/Mass/score_thresh"] == 0.6
    assert found["score_thresh"] is None
    assert found["boxes"] == found["opacity/boxes"] + found["Nodule/Mass/boxes"]
    assert found["Nodule/Mass/images"] == sum(len(one.truth) > 0 for one in second)
    assert set(COUNTS) <= found.keys()


def test_a_box_of_another_class_is_no_hit():
    box = [[10, 10, 50, 50]]
    wrong = [image_result(box, [0.9], box, [1], [0]), image_result(box, [0.9], box, [0], [1])]
    found = summarize(wrong, ["a", "b"], [0.5, 0.5], 100, 0, classes=CLASSES)
    assert found["map"] == found["rsna_score"] == 0
    right = [image_result(box, [0.9], box, [1], [1]), image_result(box, [0.9], box, [0], [0])]
    assert summarize(right, ["a", "b"], [0.5, 0.5], 100, 0, classes=CLASSES)["map"] == pytest.approx(1)


def test_each_class_has_its_threshold_and_calibration():
    boxes = [[0, 0, 10, 10], [0, 0, 20, 20], [0, 0, 30, 30]]
    result = image_result(boxes, [0.9, 0.5, 0.2], [], [0, 1, 1])
    assert keep(result, reported(result, [0.95, 0.3])).boxes.tolist() == [[0, 0, 20, 20]]
    plain = Calibration(box=ScoreMap(slope=1, intercept=0), image=ScoreMap(slope=1, intercept=0), no_box=0.01)
    higher = Calibration(box=ScoreMap(slope=1, intercept=4), image=ScoreMap(slope=1, intercept=0), no_box=0.02)
    mapped = calibrated(result, (plain, higher))
    assert mapped.labels.tolist() == [1, 1, 0] or mapped.labels.tolist() == [1, 0, 1]
    assert mapped.scores.tolist() == sorted(mapped.scores, reverse=True)
    of_class = mapped.scores[mapped.labels == 1]
    np.testing.assert_allclose(of_class, higher.box(np.array([0.5, 0.2])))
    np.testing.assert_allclose(image_probabilities_of(mapped, (plain, higher)), [0.9, of_class.max()], atol=1e-6)


def test_an_images_rsna_score_is_the_mean_of_its_classes():
    first, second = random_results(50, seed=1), random_results(50, seed=2)
    found = image_rsna_scores(together(first, second), [0.3, 0.6])
    each = np.stack([rsna_scores(first, 0.3), rsna_scores(second, 0.6)])
    known = ~np.isnan(each)
    for number in range(50):
        own = each[known[:, number], number]
        assert np.isnan(found[number]) if not len(own) else found[number] == pytest.approx(own.mean())


def test_curves_are_drawn_for_each_class():
    first, second = random_results(40, seed=1), random_results(40, seed=2)
    tables = curve_tables({"val": together(first, second), "test": together(first, second)}, (None, None), CLASSES)
    assert list(tables["froc"]["split"].unique()) == ["val, opacity", "val, Nodule/Mass", "test, opacity", "test, Nodule/Mass"]  # fmt: skip  # noqa: E501
    alone = curve_tables({"test": second})["precision_recall"].drop(columns="split")
    table = tables["precision_recall"]
    own = table[table["split"] == "test, Nodule/Mass"].drop(columns="split").reset_index(drop=True)
    assert own.equals(alone)


def test_examples_are_picked_by_the_thresholds_of_the_classes():
    box = [[10, 10, 50, 50]]
    found = [
        image_result(box, [0.5], [], [0]),
        image_result(box, [0.5], [], [1]),
        image_result(box, [0.5], box, [1], [1]),
    ]
    rows = pick_examples(found, [0.4, 0.6], 3)
    assert rows["False alarms"] == [0]
    assert rows["Misses"] == [2]


def test_subgroups_count_a_study_in_each_of_its_classes():
    classes = ["a + b" if number % 3 == 0 else "b" for number in range(60)]
    table = pd.DataFrame({"groupId": range(60), "class": classes, "view": "AP", "sex": "F", "age": 40.0})
    table[["height", "width"]] = 100
    images = together(random_results(60, seed=1), random_results(60, seed=2))
    rows = subgroup_table(images, table, [0.3, 0.6], 100, 0)
    counts = rows[rows["kind"] == "class"].set_index("group")["images"]
    assert counts.to_dict() == {"a": 20, "b": 60}
    boxes = rows[rows["kind"] == "box size"]["boxes"].sum()
    assert boxes == sum(len(one.truth) for one in images)
