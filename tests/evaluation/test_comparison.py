import numpy as np
import pandas as pd
import pytest

from pipeline.evaluation.comparison import Scored, compare, judge
from pipeline.metrics.results import image_result
from tests.metrics.conftest import random_results


@pytest.fixture
def studies():
    return pd.DataFrame(
        {
            "groupId": [f"p{number // 2}" for number in range(200)],
            "view": ["AP"] * 80 + ["PA"] * 110 + ["LL"] * 10,
            "sex": ["M", "F"] * 100,
            "age": 50,
            "class": "Normal",
        }
    )


def moved(images, pixels, places=range(200)):
    return [
        image_result(image.boxes + pixels * (number in places), image.scores, image.truth)
        for number, image in enumerate(images)
    ]


RULES = ("rsna_score", 0.0, ("view", "sex"), 0.05)


def test_a_model_that_is_surely_better(studies):
    images = random_results(200, 1)
    found = compare(Scored(images, 0.4), Scored(moved(images, 8), 0.4), studies, 300, 0)
    promoted, reasons = judge(found, *RULES)
    assert promoted
    assert len(reasons) == 1
    value, low, high = found.differences["rsna_score"]
    assert 0 < low < value < high
    assert judge(found, "rsna_score", value, *RULES[2:])[0] is False  # not surely by more than the margin
    assert judge(compare(Scored(moved(images, 8), 0.4), Scored(images, 0.4), studies, 300, 0), *RULES)[0] is False


def test_the_same_model_is_no_better(studies):
    images = random_results(200, 1)
    promoted, reasons = judge(compare(Scored(images, 0.4), Scored(images, 0.4), studies, 300, 0), *RULES)
    assert not promoted
    assert "not surely better" in reasons[0]


def test_a_large_subgroup_must_not_lose_and_a_small_one_may(studies):
    images = random_results(200, 1)
    worse_on_ap = Scored(moved(images, 5, range(80)), 0.4)
    champion = Scored(moved(images, 25, range(80, 200)), 0.4)
    found = compare(worse_on_ap, champion, studies, 300, 0)
    assert found.differences["rsna_score"][1] > 0
    promoted, reasons = judge(found, *RULES)
    assert not promoted
    assert any(reason.startswith("view AP (80 images)") for reason in reasons)
    assert judge(found, "rsna_score", 0.0, ("sex",), 0.05)[0]
    small = compare(
        Scored(moved(images, 12, range(190, 200)), 0.4), Scored(moved(images, 12, range(190)), 0.4), studies, 300, 0
    )
    assert judge(small, *RULES)[0]


def test_what_is_not_defined_is_no_reason_to_promote(studies):
    empty = [image_result([], [], [])] * 200
    found = compare(Scored(empty, 0.4), Scored(empty, 0.4), studies, 100, 0)
    assert found.differences["map_50"] == (None, None, None)
    promoted, reasons = judge(found, "map_50", 0.0, (), 0.05)
    assert not promoted
    assert reasons == ["map_50 is not defined on the 200 images"]
    assert np.isfinite(found.differences["specificity"][0])
