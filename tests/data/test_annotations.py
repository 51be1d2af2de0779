import numpy as np
import pandas as pd
import pytest

from pipeline.data.annotations import CLASSES, GROUPS, LABELS, read_annotations
from pipeline.data.checks import take_inventory
from pipeline.data.classes import NORMAL
from pipeline.errors import UserError


def test_reads_what_the_sample_wrote(sample):
    found = read_annotations(sample)
    labels = pd.read_csv(sample / LABELS)
    assert found.issues == []
    assert found.studies["patientId"].to_list() == labels["patientId"].drop_duplicates().to_list()
    assert found.studies["target"].sum() == 30
    key = labels["patientId"][labels["Target"] == 1].iloc[0]
    wanted = labels[labels["patientId"] == key][["x", "y", "width", "height"]].to_numpy(float)
    np.testing.assert_array_equal(found.boxes_of([key])[0], wanted)


def test_optional_tables(rsna):
    (rsna / CLASSES).unlink()
    (rsna / GROUPS).unlink()
    found = read_annotations(rsna)
    assert (found.studies["groupId"] == found.studies["patientId"]).all()
    assert set(found.studies["class"]) == {"Lung Opacity", "No Lung Opacity"}


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("new,1,2,3,4,2", "Target must be 0 or 1: stage_2_train_labels.csv line"),
        ("new,1,2,,4,1", "Target 1 needs four numbers"),
        ("new,1,2,3,4,0", "Target 0 must have no box"),
        ("new,1,2,0,4,1", "without width or height"),
        ("new,1,2,3,4,1\nnew,1,2,3,4,1", "the same box twice"),
        ("new,1,2,3,4,1\nnew,,,,,0", "Target 0 and Target 1"),
        ("new,1,2,inf,4,1", "needs four numbers"),
    ],
)
def test_a_bad_row_makes_its_study_a_problem(rsna, row, reason):
    for name in (CLASSES, GROUPS):
        (rsna / name).unlink()
    with (rsna / LABELS).open("a") as file:
        file.write(row + "\n")
    found = read_annotations(rsna)
    assert list(found.problems) == ["new"]
    assert reason in found.problems["new"]


def test_tables_that_contradict_each_other(rsna):
    studies = read_annotations(rsna).studies
    negative, positive = (studies["patientId"][studies["target"] == target].iloc[0] for target in (0, 1))
    classes = pd.read_csv(rsna / CLASSES)
    classes.loc[classes["patientId"] == positive, "class"] = NORMAL
    classes.to_csv(rsna / CLASSES, index=False)
    groups = pd.read_csv(rsna / GROUPS)
    groups[groups["patientId"] != negative].to_csv(rsna / GROUPS, index=False)
    problems = read_annotations(rsna).problems
    assert problems.keys() == {negative, positive}
    assert "contradicts Target: 'Normal', and Target 1" in problems[positive]
    assert "no group" in problems[negative]


@pytest.mark.parametrize("name", ["../../etc/passwd", "a/b", ".hidden", "", "a b", "x" * 200])
def test_ids_that_are_no_plain_words_are_refused(rsna, name):
    with (rsna / LABELS).open("a") as file:
        file.write(f"{name},,,,,0\n")
    with pytest.raises(UserError, match=r"line \d+: id .* letters, digits"):
        read_annotations(rsna)


def test_broken_tables(rsna):
    (rsna / LABELS).write_text("patientId,x,y,width,Target\n")
    with pytest.raises(UserError, match="column 'height' is missing"):
        read_annotations(rsna)
    (rsna / LABELS).write_text("patientId,x,y,width,height,Target\n")
    with pytest.raises(UserError, match="has no rows"):
        read_annotations(rsna)
    (rsna / LABELS).unlink()
    with pytest.raises(UserError, match="no such file"):
        read_annotations(rsna)
    with pytest.raises(UserError, match="no such folder"):
        read_annotations(rsna / "nowhere")


def test_a_split_that_comes_with_the_data(rsna):
    ids = read_annotations(rsna).studies["patientId"].to_list()
    lines = [f"{ids[0]},TRAIN", f"{ids[1]},validation", f"{ids[2]},", "elsewhere,test"]
    (rsna / "splits.csv").write_text("patientId,split\n" + "\n".join(lines) + "\n")
    found = take_inventory(rsna)
    assert found.annotations.studies["split"].to_list()[:4] == ["train", "val", "", ""]
    assert [issue.study for issue in found.issues if issue.rule.name == "split_used"] == ["elsewhere"]
    no_split, two = "line 2: split 'holdout': must be train, val, test, or empty", "line 3: .* in test, and in train"
    for text, rule in ((f"{ids[0]},holdout", no_split), (f"{ids[0]},train\n{ids[0]},test", two)):
        (rsna / "splits.csv").write_text(f"patientId,split\n{text}\n")
        with pytest.raises(UserError, match=rule):
            take_inventory(rsna)
