import numpy as np
import pandas as pd
import pytest

from pipeline.evaluation.subgroups import METRICS, subgroup_table
from pipeline.metrics.bootstrap import Metrics
from pipeline.metrics.results import image_result
from tests.metrics.conftest import random_results


@pytest.fixture
def studies():
    rng = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "groupId": [f"p{number // 2}" for number in range(120)],
            "view": rng.choice(["AP", "PA"], 120),
            "sex": ["M"] * 60 + ["F"] * 55 + [""] * 5,
            "age": [*range(1, 119), 155, np.nan],
            "class": ["Normal"] * 120,
            "height": 120,
            "width": 100,
        }
    )


def test_each_row_is_the_metrics_of_its_studies(studies):
    images = random_results(120, 1)
    table = subgroup_table(images, studies, 0.4, 200, 0).set_index(["kind", "group"])
    men = Metrics(images[:60], 0.4).draws(np.ones((1, 60)))
    assert table.loc[("sex", "M"), "map_50"] == pytest.approx(men["map_50"][0], abs=1e-6)
    assert table.loc[("sex", "M"), ["images", "patients"]].tolist() == [60, 30]
    assert table.loc[("sex", "not known"), "images"] == 5
    assert table.loc[("sex", "not known"), "small"]
    assert not table.loc[("sex", "M"), "small"]
    assert table.loc[("age", "not known"), "images"] == 2
    assert table.loc["age"]["images"].sum() == table.loc["sex"]["images"].sum() == 120
    for key in METRICS:
        known = table[table[key].notna()]
        assert (known[f"{key}_low"] <= known[key] + 1e-9).all(), key
        assert (known[key] <= known[f"{key}_high"] + 1e-9).all(), key


def test_false_alarms_by_class_and_boxes_by_size(studies):
    box, small = [0, 0, 60, 60], [0, 0, 20, 20]  # .5 and .17 of 120 pixels
    found = [image_result([box, small], [0.9, 0.2], [box, small])] * 60
    found += [image_result([box], [0.9], [])] * 15 + [image_result([], [], [])] * 45
    studies["class"] = ["Lung Opacity"] * 60 + ["Normal"] * 30 + ["Not Normal"] * 30
    table = subgroup_table(found, studies, 0.5, 100, 0).set_index(["kind", "group"])
    assert table.loc[("class", "Normal"), "specificity"] == 0.5
    assert table.loc[("class", "Not Normal"), "specificity"] == 1
    assert np.isnan(table.loc[("class", "Normal"), "sensitivity"])
    assert np.isnan(table.loc[("class", "Normal"), "rsna_score"])  # 0 would look like a failure
    assert table.loc[("class", "Lung Opacity"), "rsna_score"] > 0
    assert table.loc[("box size", "0.3 and more"), "sensitivity"] == 1
    assert table.loc[("box size", "below 0.2"), "sensitivity"] == 0
    assert table.loc[("box size", "below 0.2"), ["boxes", "positives"]].tolist() == [60, 60]
    assert table.loc[("class", "Lung Opacity"), ["boxes", "positives"]].tolist() == [120, 60]
    assert ("box size", "0.2 to 0.3") not in table.index
