import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data.splits import require_no_leak, split_studies
from pipeline.errors import UserError

FRACTIONS = {"train": 0.7, "val": 0.1, "test": 0.2}


def studies(count, seed, multiple=0.4):
    rng = np.random.default_rng(seed)
    group = np.where(rng.random(count) < multiple, rng.integers(0, max(1, count // 5), count), np.arange(count) + count)
    return pd.DataFrame(
        {
            "patientId": [f"s{number}" for number in range(count)],
            "groupId": group.astype(str),
            "class": rng.choice(["Lung Opacity", "Normal", "Other"], count, p=[0.25, 0.35, 0.4]),
            "view": rng.choice(["AP", "PA"], count),
        }
    )


@settings(max_examples=20, deadline=None)
@given(st.integers(100, 400), st.integers(0, 1000))
def test_no_patient_is_in_two_splits(count, seed):
    table = studies(count, seed)
    split = split_studies(table, FRACTIONS, seed)
    require_no_leak(table, split)
    assert set(split) == {"train", "val", "test"}
    assert split.groupby(table["groupId"]).nunique().max() == 1


def test_shares_and_strata_are_as_asked():
    table = studies(4000, 1)
    split = split_studies(table, FRACTIONS, 0)
    for name, share in FRACTIONS.items():
        assert abs((split == name).mean() - share) < 0.01
        for column in ("class", "view"):
            whole = table[column].value_counts(normalize=True)
            part = table[column][split == name].value_counts(normalize=True)
            assert (whole - part).abs().max() < 0.03


def test_the_seed_decides():
    table = studies(300, 1)
    assert split_studies(table, FRACTIONS, 3).equals(split_studies(table, FRACTIONS, 3))
    assert not split_studies(table, FRACTIONS, 3).equals(split_studies(table, FRACTIONS, 4))


def test_too_few_patients():
    with pytest.raises(UserError, match="10 folds need as many patients, the data set has 1"):
        split_studies(studies(40, 0).assign(groupId="one"), FRACTIONS, 0)


def test_too_few_studies():
    table = studies(12, 0).assign(groupId=lambda rows: rows["patientId"])
    with pytest.raises(UserError, match="12 studies are too few for 10 folds"):
        split_studies(table, FRACTIONS, 0)


def test_a_leak_is_found():
    table = pd.DataFrame({"groupId": ["a", "a", "b", "c"]})
    with pytest.raises(UserError, match="patient a is in 2 splits"):
        require_no_leak(table, pd.Series(["train", "val", "test", "val"]))
    with pytest.raises(UserError, match="split test is empty"):
        require_no_leak(table, pd.Series(["train", "train", "train", "val"]))
