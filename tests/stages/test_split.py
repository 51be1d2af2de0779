"""The split stage on files: the assignments that it keeps and the messages that it writes."""

import json
import shutil

import pandas as pd
import pytest

from pipeline.data.manifest import write_manifest
from pipeline.data.prepared_tables import GIVEN_SPLIT, INDEX_COLUMNS
from pipeline.data.splits import LEAKED
from pipeline.errors import UserError
from pipeline.params import Params
from pipeline.paths import SPLITS_FILE
from pipeline.stages.split import split


@pytest.fixture
def index(tmp_path):
    """Write and return an index of 120 studies of 60 patients; ``save(table)`` rewrites it."""
    numbers = range(120)
    table = pd.DataFrame(
        {
            "patientId": [f"s{number}" for number in numbers],
            "groupId": [f"p{number // 2}" for number in numbers],
            "cluster": [f"p{number // 2}" for number in numbers],
            "class": [("Lung Opacity", "Normal", "No Lung Opacity / Not Normal")[number % 3] for number in numbers],
            "view": [("AP", "PA")[number // 3 % 2] for number in numbers],
            "sex": [("M", "F")[number // 2 % 2] for number in numbers],
        }
    )
    table = table.assign(shard="images-00000.npy", row=range(120), height=9, width=9, age="", target=0, spacing="")
    save(table)
    return table


def save(table):
    folder = SPLITS_FILE.parent / "prepared"
    folder.mkdir(parents=True, exist_ok=True)
    columns = [*INDEX_COLUMNS, *({GIVEN_SPLIT} & set(table.columns))]
    table.assign(row=range(len(table)))[columns].to_csv(folder / "index.csv", index=False)
    write_manifest(folder)


@pytest.fixture
def assigned(small_params):
    """Return a function that runs the stage with changes to its section, and reads the splits that it wrote."""

    def call(seed=17, **changes):
        small_params["split"] |= changes
        split(Params.model_validate(small_params | {"seed": seed}))
        return pd.read_csv(SPLITS_FILE, dtype=str).set_index("patientId")["split"]

    return call


def test_other_data_do_not_inherit_splits(index, assigned, caplog):
    """Patients 1, 2, 3 of one data set are not those of another."""
    before = assigned()
    other = index.assign(patientId="x" + index["patientId"])[::-1]
    save(other)
    after = assigned()
    assert "of other data, none of whose studies is here" in caplog.text
    SPLITS_FILE.unlink()
    assert after.equals(assigned())
    assert (after[other["patientId"]].to_numpy() != before[index["patientId"][::-1]].to_numpy()).any()


def test_removed_and_added_studies_move_nobody(index, assigned, caplog):
    before = assigned()
    save(index[20:].sample(frac=1, random_state=1))
    after = assigned()
    assert after.equals(before[after.index])
    new = index[:30].assign(patientId=lambda rows: "n" + rows["patientId"], cluster=lambda rows: "n" + rows["cluster"])
    new["groupId"] = new["cluster"]
    caplog.clear()
    with caplog.at_level("INFO"):
        save(pd.concat([new, index[20:]]))
        grown = assigned()
    assert grown[after.index].equals(after)
    assert "50 patients stay in their splits, 15 are new" in caplog.text
    # A second image of a known patient goes into the patient's split.
    save(pd.concat([index, index[:1].assign(patientId="again")]))
    assert assigned()["again"] == before["s0"]


def test_another_seed_or_other_shares_assign_anew(index, assigned, caplog):
    before = assigned()
    assert not assigned(seed=2).equals(before)
    assert "assigned anew" in caplog.text
    assert assigned(seed=17).equals(before)
    shutil.rmtree("data/prepared")
    save(index)
    SPLITS_FILE.write_text("patientId,split\ns0,train\n")
    assert assigned().equals(before)


def test_a_table_of_an_older_version_keeps_its_patients(index, assigned):
    before = assigned()
    SPLITS_FILE.write_text(SPLITS_FILE.read_text().replace(', ""studies"": 120', ""))
    assert "studies" not in SPLITS_FILE.read_text()
    save(index[20:])
    assert assigned().equals(before[20:])


def test_a_copy_brings_two_patients_together(index, assigned, caplog):
    before = assigned()
    train, test = (next(key for key in before.index if before[key] == name) for name in ("train", "test"))
    joined = index.set_index("patientId")["cluster"]
    table = index.assign(cluster=index["cluster"].replace({joined[test]: joined[train]}))
    save(table)
    after = assigned()
    assert after[test] == after[train]
    assert "change their split" in caplog.text
    others = ~table["cluster"].isin([joined[train]]).to_numpy()
    assert after[others].equals(before[others])


def test_each_fold_is_val_once_and_test_is_always_the_same(index, assigned):
    seen = []
    for fold in range(4):
        found = assigned(folds=4, fold=fold)
        assert set(found) == {"train", "val", "test"}
        seen.append(found)
    tests = [set(found.index[found == "test"]) for found in seen]
    vals = [set(found.index[found == "val"]) for found in seen]
    assert all(one == tests[0] for one in tests)
    assert sum(len(one) for one in vals) == len(set().union(*vals)) == 120 - len(tests[0])


def test_leaked_studies(index, assigned):
    plain, found = assigned(), assigned(leaked=0.1)
    leaked = found.index[found == LEAKED]
    assert 6 <= len(leaked) <= 12
    assert set(plain[leaked]) == {"train"}
    assert found.drop(leaked).equals(plain.drop(leaked))


def test_without_groups_a_loud_warning(index, assigned, caplog):
    save(index.assign(groupId=index["patientId"], cluster=index["patientId"]))
    assigned()
    assert "no patient_groups.csv" in caplog.text


def test_too_few_studies(index, assigned, caplog):
    save(index[:2])
    with pytest.raises(UserError, match="is empty; more studies"):
        assigned()
    normal = index["class"] == "Normal"
    save(pd.concat([index[~normal][:60], index[normal][:1]]))
    assigned(seed=3)
    assert "has no study of class 'Normal'" in caplog.text


def test_params(small_params):
    for changes, rule in (
        ({"folds": 1}, "at least 2"),
        ({"folds": 3, "fold": 3}, "below folds"),
        ({"fold": 1}, "below"),
    ):
        values = json.loads(json.dumps(small_params))
        values["split"] |= changes
        with pytest.raises(ValueError, match=rule):
            Params.model_validate(values)


def test_a_given_split_is_kept_and_the_rest_is_dealt(index, assigned):
    free = assigned()
    # Every second patient of the first forty, and only one of the patient's two studies.
    named = {f"s{number}": ("test", "val", "train")[number // 4 % 3] for number in range(0, 80, 4)}
    save(index.assign(split=index["patientId"].map(named).fillna("")))
    found = assigned()
    assert {key: found[key] for key in named} == named
    for number in range(0, 80, 4):
        assert found[f"s{number + 1}"] == named[f"s{number}"], "a patient stays whole"
    others = [key for key in found.index if int(key[1:]) // 2 * 2 % 4 or int(key[1:]) >= 80]
    assert found[others].equals(free[others]), "the former assignment of the others stays"


def test_studies_that_are_given_to_test_stay_out_of_the_folds(index, assigned):
    named = {f"s{number}": ("test", "val", "train")[number // 2 % 3] for number in range(60)}
    save(index.assign(split=index["patientId"].map(named).fillna("")))
    assigned(folds=5)
    parts = pd.read_csv(SPLITS_FILE, dtype=str).set_index("patientId")["part"]
    for key, name in named.items():
        assert (parts[key] == "test") == (name == "test")
    assert set(parts) == {"test", *(f"fold{number}" for number in range(5))}


def test_a_patient_in_two_given_splits(index, assigned, caplog):
    named = {f"s{number}": ("train", "test")[number % 2] for number in range(6)} | {"s10": "val"}
    save(index.assign(split=index["patientId"].map(named).fillna("")))
    with pytest.raises(UserError, match=r"splits.csv: patient p0 is in test and train \(3 such patients\); a"):
        assigned()
    found = assigned(shared_patients="allow")
    assert {key: found[key] for key in named} == named
    assert "patient p0 is in test and train, and 2 more are in several: scores are too good" in caplog.text
    with pytest.raises(ValueError, match="shared_patients allow needs folds 0"):
        assigned(shared_patients="allow", folds=5)
