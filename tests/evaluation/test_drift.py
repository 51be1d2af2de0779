import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.evaluation.drift import binned, chance, counts, measure_drift, psi
from pipeline.reports.drift_page import render_drift_page


def studies(count, seed, grey=110.0, views=(0.5, 0.5), score=(2, 5)):
    rng = np.random.default_rng(seed)
    return pd.DataFrame(
        {
            "view": rng.choice(["AP", "PA"], count, p=views),
            "grey_mean": rng.normal(grey, 10, count),
            "grey_std": rng.normal(50, 5, count),
            "image_score": rng.beta(*score, count),
            "findings": rng.integers(0, 3, count),
        }
    )


def test_psi_is_the_definition():
    p, q = np.array([50.0, 30, 20]), np.array([20.0, 30, 50])
    wanted = (0.2 - 0.5) * np.log(0.2 / 0.5) + (0.5 - 0.2) * np.log(0.5 / 0.2)
    assert psi(p, q) == pytest.approx(wanted)
    assert psi(p, p * 7) == 0
    assert np.isfinite(psi(np.array([1.0, 0]), np.array([0.0, 1])))


@given(st.lists(st.integers(0, 5), min_size=1, max_size=50), st.lists(st.integers(0, 5), min_size=1, max_size=50))
def test_every_value_is_counted_once(reference, new):
    old, now = binned(np.array(reference, float), np.array(new, float))
    assert (old.sum(), now.sum()) == (len(reference), len(new))
    assert psi(old, now) >= 0
    old, now = counts(reference, new)
    assert (old.sum(), now.sum()) == (len(reference), len(new))


def test_the_same_kind_of_studies_is_within_the_limits():
    """Test many draws, with few and with many new studies."""
    alarms = [
        one.feature
        for seed in range(40)
        for count in (50, 500)
        for one in measure_drift(studies(300, 0), studies(count, seed + 1), 0.25, 0.001)
        if one.past
    ]
    assert len(alarms) <= 2, alarms


@pytest.mark.parametrize(
    ("changes", "feature"),
    [
        ({"grey": 122.0}, "grey_mean"),
        ({"score": (5, 2)}, "image_score"),
        ({"views": (0.95, 0.05)}, "view"),
    ],
)
def test_what_has_moved_is_past_its_limits(changes, feature):
    found = measure_drift(studies(300, 0), studies(200, 1, **changes), 0.25, 0.001)
    assert [one.feature for one in found if one.past] == [feature]


def test_chance_is_seldom_exceeded():
    rng = np.random.default_rng(0)
    shares = np.array([0.5, 0.3, 0.2])
    pairs = [(rng.multinomial(200, shares) * 1.0, rng.multinomial(60, shares) * 1.0) for _ in range(300)]
    assert np.mean([psi(*pair) > chance(*pair) for pair in pairs]) < 0.2


def test_the_page_is_whole():
    reference, new = studies(60, 0), studies(60, 1, views=(0.0, 1.0))
    new["view"] = "<script>"
    found = measure_drift(reference, new, 0.25, 0.001)
    page = render_drift_page(found, reference, new, "version <1>", (0.25, 0.001))
    assert page.count("past the limits</span>") == 1
    assert "<script>" not in page
    assert "version &lt;1&gt;" in page
    assert "http" not in page.replace("http-equiv", "")
