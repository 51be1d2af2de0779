import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data.assign_splits import STRATA, assign_splits, kfold_shares, missing_classes, pick_leaked
from pipeline.data.splits import LEAKED, require_no_leak
from pipeline.errors import UserError

SHARES = {"train": 0.65, "val": 0.15, "test": 0.20}


def studies(count, seed):
    """Return a table with patients, classes, views and sexes mixed as in RSNA's data: about 2.3 studies a patient."""
    rng = np.random.default_rng(seed)
    sizes = np.where(rng.random(count) < 0.62, 1, np.minimum(1 + rng.geometric(0.28, count), 65))
    owner = np.repeat(np.arange(count), sizes)[:count]
    rng.shuffle(owner)
    sick, bedside = rng.beta(0.6, 2.2, count), rng.beta(1, 1.2, count)
    other = rng.choice(["No Lung Opacity / Not Normal", "Normal"], count, p=[0.57, 0.43])
    return pd.DataFrame(
        {
            "patientId": [f"s{number}" for number in range(count)],
            "groupId": [f"p{number}" for number in owner],
            "cluster": [f"p{number}" for number in owner],
            "class": np.where(rng.random(count) < sick[owner], "Lung Opacity", other),
            "view": np.where(rng.random(count) < bedside[owner], "AP", "PA"),
            "sex": np.where(rng.random(count)[owner] < 0.57, "M", "F"),
        }
    )


@settings(max_examples=25)
@given(st.integers(100, 400), st.integers(0, 1000))
def test_no_patient_is_in_two_splits(count, seed):
    table = studies(count, seed)
    split = assign_splits(table, SHARES, seed)
    require_no_leak(table, split)
    assert set(split) == set(SHARES)
    assert split.groupby(table["groupId"]).nunique().max() == 1


@pytest.mark.slow
def test_at_the_size_of_rsna_every_stratum_is_within_one_percent():
    table = studies(26684, 1)
    assert table["cluster"].nunique() < 15000
    split = assign_splits(table, SHARES, 17)
    stratum = table[STRATA].agg("/".join, axis=1)
    assert stratum.nunique() == 12
    for name, share in SHARES.items():
        assert abs((split == name).mean() - share) < 0.002
        for mix in stratum.unique():
            assert abs((split[stratum == mix] == name).mean() - share) < 0.01
        for column in STRATA:
            whole = table[column].value_counts(normalize=True)
            part = table[column][split == name].value_counts(normalize=True)
            assert (whole - part).abs().max() < 0.01


@pytest.mark.parametrize("seed", range(12))
def test_a_few_hundred_studies_put_every_class_into_every_split(seed):
    table = studies(200, seed)
    split = assign_splits(table, SHARES, seed)
    assert missing_classes(table, split) == []
    assert max(abs((split == name).mean() - share) for name, share in SHARES.items()) < 0.03


def test_what_is_added_at_the_end_moves_nobody():
    table = studies(1200, 3)
    new = studies(300, 4).assign(cluster=lambda rows: "new-" + rows["cluster"])
    both = pd.concat([table, new], ignore_index=True)
    assert assign_splits(both, SHARES, 1)[: len(table)].equals(assign_splits(table, SHARES, 1))


@settings(max_examples=20)
@given(st.integers(0, 1000), st.floats(0, 0.6))
def test_who_was_dealt_stays_whatever_is_added_or_removed(seed, gone):
    table = studies(400, seed)
    first = assign_splits(table, SHARES, seed)
    former = dict(zip(table["cluster"], first, strict=True))
    rng = np.random.default_rng(seed)
    kept = table[rng.random(len(table)) >= gone]
    new = studies(200, seed + 1).assign(cluster=lambda rows: "new-" + rows["cluster"])
    later = pd.concat([kept, new]).sample(frac=1, random_state=seed).reset_index(drop=True)
    split = assign_splits(later, SHARES, seed, former)
    known = later["cluster"].isin(former)
    assert (split[known] == later["cluster"][known].map(former)).all()
    # The new patients make up for the studies that the splits lack.
    assert abs((split == "test").mean() - SHARES["test"]) < 0.05


def test_the_seed_decides():
    table = studies(600, 1)
    assert assign_splits(table, SHARES, 3).equals(assign_splits(table, SHARES, 3))
    a, b = (assign_splits(table, SHARES, seed) == "test" for seed in (3, 4))
    assert (a & b).sum() < 0.6 * a.sum()


def test_the_order_of_rows_of_one_patient_does_not_matter_to_the_others():
    table = studies(300, 2)
    split = assign_splits(table, SHARES, 0)
    assert split.index.equals(table.index)
    assert (split == assign_splits(table.rename(index=lambda number: number + 7), SHARES, 0).to_numpy()).all()


def test_folds():
    table = studies(2000, 5)
    shares = kfold_shares(SHARES, 5)
    assert sum(shares.values()) == pytest.approx(1)
    part = assign_splits(table, shares, 0)
    assert {name: round(share, 2) for name, share in part.value_counts(normalize=True).items()} == {
        "test": 0.2,
        **{f"fold{number}": 0.16 for number in range(5)},
    }


def test_leaked_studies_have_a_sibling_in_train_and_the_mix_of_val():
    table = studies(4000, 6)
    split = pick_leaked(table, assign_splits(table, SHARES, 0), 300, 0)
    leaked = split == LEAKED
    assert 280 <= leaked.sum() <= 310
    assert set(table["cluster"][leaked]) <= set(table["cluster"][split == "train"])
    require_no_leak(table, split)
    for column in STRATA:
        mix, wanted = (table[column][split == name].value_counts(normalize=True) for name in (LEAKED, "val"))
        assert (mix - wanted).abs().max() < 0.03
    # No other study has moved.
    assert (split[~leaked] == assign_splits(table, SHARES, 0)[~leaked]).all()


def test_a_leak_is_found():
    table = pd.DataFrame({"groupId": ["a", "a", "b", "c"], "cluster": ["a", "a", "b", "c"]})
    with pytest.raises(UserError, match="patient a is in 2 splits"):
        require_no_leak(table, pd.Series(["train", "val", "test", "val"]))
    with pytest.raises(UserError, match="split test is empty"):
        require_no_leak(table, pd.Series(["train", "train", "train", "val"]))
    # Patients b and c share an image.
    table["cluster"] = ["a", "a", "b", "b"]
    with pytest.raises(UserError, match="patient b is in 2 splits"):
        require_no_leak(table, pd.Series(["train", "train", "test", "val"]))
