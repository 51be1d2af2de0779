"""The classes of the label table's boxes, and boxes that several readers drew."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from ensemble_boxes import weighted_boxes_fusion
from hypothesis import given
from hypothesis import strategies as st

from pipeline.data.annotations import BOX, LABELS, read_annotations
from pipeline.data.box_classes import LabelRules, fuse_equal
from pipeline.errors import UserError

HEADER = "patientId,x,y,width,height,Target,class\n"
TABLE = HEADER + "\n".join(
    ["a,1,2,3,4,1,Consolidation", "a,9,9,5,5,1,nodule / mass", "b,,,,,0,", "c,5,5,9,9,1, INFILTRATION ", "d,,,,,0,NA"]
)
TWO = {"opacity": ["Consolidation", "infiltration"], "nodule": ["Nodule / Mass"]}


@pytest.fixture
def read(tmp_path):
    """Return a function that writes a label table and reads it."""

    def call(text, rules=None):
        (tmp_path / LABELS).write_text(text)
        return read_annotations(tmp_path, rules=rules)

    return call


def test_names_mean_classes_whatever_their_case(read):
    found = read(TABLE, LabelRules(TWO))
    assert found.names == ("opacity", "nodule")
    assert found.issues == []
    assert [labels.tolist() for labels in found.labels_of(list("abcd"))] == [[0, 1], [], [0], []]
    assert found.studies["class"].to_list() == ["opacity + nodule", "no finding", "opacity", "no finding"]
    assert found.studies["target"].to_list() == [1, 0, 1, 0]


def test_without_rules_each_name_is_a_class(read):
    found = read(TABLE)
    assert found.names == ("Consolidation", "INFILTRATION", "nodule / mass")
    assert [labels.tolist() for labels in found.labels_of(list("abc"))] == [[0, 2], [], [1]]


def test_other_classes_are_named_with_their_counts_or_left_out(read):
    text = TABLE + "\ne,1,1,2,2,1,Fracture\ne,4,4,2,2,1,fracture\ne,6,6,2,2,1,\n"
    with pytest.raises(UserError, match=r"`classes` does not name: .*'Fracture' 1.*none 1.*other_classes: drop"):
        read(text, LabelRules(TWO))
    found = read(text, LabelRules(TWO, drop_others=True))
    assert found.dropped == {"Fracture": 1, "fracture": 1, "": 1}
    assert len(found.boxes) == 3
    assert found.studies.set_index("patientId").loc["e", ["class", "target"]].to_list() == ["no finding", 0]
    assert found.issues == []


def test_several_classes_need_their_column(read):
    with pytest.raises(UserError, match=r"has no column 'class', but `classes` has 2"):
        read("patientId,x,y,width,height,Target\na,1,2,3,4,1\n", LabelRules(TWO))


def test_one_class_needs_no_name(read):
    one = LabelRules({"lung opacity": []})
    plain = read("patientId,x,y,width,height,Target\na,1,2,3,4,1\nb,,,,,0\n", one)
    assert plain.studies["class"].to_list() == ["Lung Opacity", "No Lung Opacity"]
    named = read(HEADER + "a,1,2,3,4,1,Lung Opacity\nb,,,,,0,Normal\nc,1,1,2,2,1,\n", one)
    assert named.boxes["label"].to_list() == [0, 0]
    with pytest.raises(UserError, match="'Nodule' 1"):
        read(HEADER + "a,1,2,3,4,1,Nodule\n", one)
    other = read("patientId,x,y,width,height,Target\na,1,2,3,4,1\nb,,,,,0\n", LabelRules({"nodule": []}))
    assert other.studies["class"].to_list() == ["nodule", "no finding"]


def test_the_same_box_of_two_classes_or_readers_is_no_mistake(read):
    both = HEADER + "a,1,2,3,4,1,Consolidation\na,1,2,3,4,1,Nodule / Mass\n"
    assert read(both, LabelRules(TWO)).issues == []
    again = read(both + "a,1,2,3,4,1,Infiltration\n", LabelRules(TWO))
    assert [issue.rule.name for issue in again.issues] == ["box_once"]
    readers = "patientId,x,y,width,height,Target,reader\na,1,2,3,4,1,R1\na,1,2,3,4,1,R2\n"
    assert read(readers).issues == []
    assert len(read(readers).boxes) == 2


def test_readers_boxes_of_one_class_become_their_mean(read):
    text = "patientId,x,y,width,height,Target,class,reader\n" + "\n".join(
        ["a,10,10,20,20,1,Consolidation,R1", "a,12,10,20,20,1,Infiltration,R2", "a,11,10,20,20,1,Nodule / Mass,R3",
         "a,70,70,10,10,1,Consolidation,R3", "b,10,10,20,20,1,Consolidation,R1"]
    )  # fmt: skip
    merged = read(text, LabelRules(TWO, reader_iou=0.5)).boxes
    assert merged[["patientId", *BOX, "label"]].to_numpy().tolist() == [
        ["a", 11, 10, 20, 20, 0], ["a", 70, 70, 10, 10, 0], ["a", 11, 10, 20, 20, 1], ["b", 10, 10, 20, 20, 0],
    ]  # fmt: skip
    assert len(read(text, LabelRules(TWO)).boxes) == 5


corner, side = st.integers(0, 60), st.integers(5, 40)


@given(st.lists(st.tuples(corner, corner, side, side), min_size=1, max_size=8), st.sampled_from([0.2, 0.45, 0.7]))
def test_fusion_is_that_of_the_reference_implementation(boxes, iou_thresh):
    ours = fuse_equal(np.array(boxes, np.float64), iou_thresh)
    corners = [[x / 128, y / 128, (x + w) / 128, (y + h) / 128] for x, y, w, h in boxes]
    # The reference takes equal scores in the reverse of their order.
    theirs, *_ = weighted_boxes_fusion([corners[::-1]], [[1.0] * len(boxes)], [[0] * len(boxes)], iou_thr=iou_thresh)
    theirs = np.asarray(theirs) * 128
    theirs[:, 2:] -= theirs[:, :2]
    np.testing.assert_allclose(sorted(ours.tolist()), sorted(theirs.tolist()), atol=1e-3)


def test_a_check_counts_classes_and_what_is_left_out(sample, tmp_path, run):
    folder = tmp_path / "rsna"
    folder.mkdir()
    for path in Path(sample).iterdir():
        (folder / path.name).symlink_to(path)
    labels = pd.read_csv(sample / LABELS)
    labels["class"] = np.where(labels["x"] < 50, "Nodule", "Consolidation")
    (folder / LABELS).unlink()
    labels.to_csv(folder / LABELS, index=False)
    said = run("pipeline.cli", "check", folder, cwd=tmp_path).stdout
    counts = labels[labels["Target"] == 1]["class"].value_counts()
    assert f"studies: Consolidation {counts['Consolidation']}, Nodule {counts['Nodule']}" in said
