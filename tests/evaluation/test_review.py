"""The values by which studies are queued for a person, and the choice among them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.evaluation.review import (
    REASONS,
    choose,
    disagreement,
    missing_box,
    uncertainty,
    unfound_box,
    unlabelled,
)
from pipeline.metrics.results import image_result

BOX, NEAR, FAR = [0, 0, 100, 100], [10, 0, 110, 100], [300, 300, 400, 400]


def test_uncertainty_and_disagreement():
    assert uncertainty(np.array([0.5])) == 1
    assert uncertainty(np.array([0.0, 1.0])) == 0
    assert uncertainty(np.array([0.05, 0.6])) == pytest.approx(0.8)
    assert disagreement([np.array([0.1, 0.9]), np.array([0.3, 0.4]), np.array([0.2, 0.8])]) == pytest.approx(0.5)
    assert disagreement([np.array([0.7]), np.array([0.7])]) == 0


@pytest.mark.parametrize(
    ("detections", "truth", "missing", "unfound"),
    [
        ([], [], 0, 0),
        ([(BOX, 0.9, 0)], [(BOX, 0)], 0, 0),
        ([(NEAR, 0.9, 0)], [(BOX, 0)], 0, 0),  # IoU .82
        ([(BOX, 0.9, 0)], [], 0.9, 0),
        ([(FAR, 0.9, 0), (BOX, 0.8, 0)], [(BOX, 0)], 0.9, 0),
        ([(BOX, 0.4, 0)], [], 0, 0),  # below the threshold of its class
        ([(BOX, 0.4, 1)], [], 0.4, 0),  # above that of the other
        ([], [(BOX, 0)], 0, 1),
        ([(NEAR, 0.2, 0)], [(BOX, 0)], 0, 0.8),
        ([(NEAR, 0.9, 1)], [(BOX, 0)], 0.9, 1),  # a box of another class is not this finding
        ([(BOX, 0.9, 0)], [(BOX, 0), (FAR, 0)], 0, 1),
    ],
)
def test_label_errors(detections, truth, missing, unfound):
    boxes, scores, labels = ([one[n] for one in detections] for n in range(3))
    result = image_result(boxes, scores, [one[0] for one in truth], labels, [one[1] for one in truth])
    thresholds = (0.5, 0.3)
    assert missing_box(result, thresholds) == pytest.approx(missing)
    assert unfound_box(result, thresholds) == pytest.approx(unfound)
    assert unlabelled(result, thresholds).any() == (missing > 0)


@given(
    st.dictionaries(
        st.text("abc", min_size=1, max_size=4),
        st.dictionaries(st.sampled_from(list(REASONS)), st.floats(0, 1)),
        max_size=20,
    ),
    st.integers(0, 25),
)
def test_each_reason_in_turn_gives_its_most_urgent_study(values, count):
    chosen = choose(values, count)
    possible = [study for study, own in values.items() if any(value > 0 for value in own.values())]
    assert len(chosen) == min(count, len(possible))
    assert len({one.study for one in chosen}) == len(chosen)
    taken = set()
    for one in chosen:
        assert one.value == values[one.study][one.reason] > 0
        others = [own[one.reason] for study, own in values.items() if study not in taken and one.reason in own]
        assert one.value == max(others)
        taken.add(one.study)
    assert chosen == choose(dict(reversed(values.items())), count)


def test_the_first_reason_comes_first():
    values = {"a": {"uncertainty": 0.9}, "b": {"missing box": 0.6}, "c": {"uncertainty": 0.95, "unfound box": 0.1}}
    assert [(one.study, one.reason) for one in choose(values, 3)] == [
        ("b", "missing box"), ("c", "unfound box"), ("a", "uncertainty"),
    ]  # fmt: skip
