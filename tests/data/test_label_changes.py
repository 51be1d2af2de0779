"""Differences between two versions of the labels."""

from collections import Counter

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.data.annotations import LABELS, read_annotations
from pipeline.data.label_changes import ADDED, MOVED, OTHER_CLASS, REMOVED, Change, Drawn, counts, label_changes

HEADER = "patientId,x,y,width,height,Target,class\n"


@pytest.fixture(scope="module")
def read(tmp_path_factory):
    folder = tmp_path_factory.mktemp("versions")

    def parse(rows):
        (folder / LABELS).write_text(HEADER + "".join(f"{row}\n" for row in rows))
        return read_annotations(folder)

    return parse


def rows(boxes):
    """Return the table of studies a and b: boxes are (study, name, x, y)."""
    made = [f"{study},{x},{y},100,80,1,{name}" for study, name, x, y in boxes]
    return made + [f"{study},,,,,0," for study in "ab" if study not in {box[0] for box in boxes}]


# Boxes of a grid whose cells do not touch.
CELLS = st.tuples(st.sampled_from("ab"), st.sampled_from(["mass", "nodule"]), st.integers(0, 4), st.integers(0, 4))
EDITS = st.sampled_from([None, REMOVED, MOVED, OTHER_CLASS])


@given(st.lists(st.tuples(CELLS, EDITS), max_size=8, unique_by=lambda one: (one[0][0], *one[0][2:])), st.data())
def test_each_edit_is_found_and_nothing_else(read, edited, data):
    before, after, wanted = [], [], []
    for (study, name, column, row), edit in edited:
        x, y = 200 * column, 200 * row
        before.append((study, name, x, y))
        new_name = {"mass": "nodule", "nodule": "mass"}[name] if edit == OTHER_CLASS else name
        shift = data.draw(st.integers(1, 30)) if edit == MOVED else 0
        if edit != REMOVED:
            after.append((study, new_name, x + shift, y))
        if edit:
            old, new = Drawn(name, (x, y, 100, 80)), Drawn(new_name, (x + shift, y, 100, 80))
            wanted.append(Change(study, edit, old, None if edit == REMOVED else new))
    anchors = [("a", "mass", 5000, 5000), ("b", "nodule", 5000, 5000)]  # both classes are in both versions
    found = label_changes(read(rows(before + anchors)), read(rows(after + anchors)))
    assert Counter(found) == Counter(wanted)
    back = label_changes(read(rows(after + anchors)), read(rows(before + anchors)))
    opposite = {REMOVED: ADDED}
    assert sorted((one.study, opposite.get(one.kind, one.kind)) for one in wanted) == sorted(
        (one.study, one.kind) for one in back
    )
    assert sum(sum(row.values()) for row in counts(found).values()) == len(wanted)


def test_studies_that_come_and_go(read):
    old = read(["a,1,2,30,40,1,mass", "c,1,2,30,40,1,mass"])
    new = read(["a,1,2,30,40,1,mass", "d,,,,,0,"])
    found = label_changes(old, new)
    assert [(one.study, one.kind) for one in found] == [("d", "study added"), ("c", "study removed"), ("c", REMOVED)]


def test_of_two_candidates_the_nearer_box_is_the_same_finding(read):
    old = read(["a,100,100,100,100,1,mass", "a,160,100,100,100,1,mass"])
    new = read(["a,155,100,100,100,1,mass"])
    moved, removed = label_changes(old, new)
    assert (moved.kind, moved.before.box[0], removed.kind, removed.before.box[0]) == (MOVED, 160, REMOVED, 100)


def test_the_only_class_may_have_a_name_in_one_version(rsna, read):
    table = pd.read_csv(rsna / LABELS)
    before = read_annotations(rsna)
    table.assign(**{"class": "lung opacity"}).to_csv(rsna / LABELS, index=False)
    assert label_changes(before, read_annotations(rsna)) == []
