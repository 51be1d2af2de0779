"""``pneumoflow score`` on files that others wrote."""

import json

import numpy as np
import pandas as pd
import pytest

from pipeline.assembly.detections import results_table
from pipeline.data.annotations import CLASSES, GROUPS, LABELS, read_annotations
from pipeline.data.geometry import xyxy
from pipeline.errors import UserError
from pipeline.jobs.score import compare_submissions, score_submission
from pipeline.metrics.results import image_result


@pytest.fixture
def truth(rsna):
    return read_annotations(rsna)


@pytest.fixture
def submit(rsna, truth, tmp_path):
    """Return a function that writes a submission: the true boxes, all with one score, and ``wrong`` false ones."""

    def write(scores, name="mine.csv", wrong=0):
        keys = truth.studies["patientId"].to_list()
        boxes = [xyxy(box) for box in truth.boxes_of(keys)]
        negative = [place for place, box in enumerate(boxes) if not len(box)]
        for place in negative[:wrong]:
            boxes[place] = np.array([[1.0, 1, 50, 50]])
        path = tmp_path / name
        found = [image_result(box, np.full(len(box), scores), []) for box in boxes]
        path.write_text(results_table(keys, found, ["lung opacity"]))
        return path

    return write


@pytest.mark.parametrize("score", [0.9, 0.0, -2.5, 1e-4, 30.0])
def test_without_a_threshold_all_that_is_in_the_file_counts(submit, rsna, score):
    found, note = score_submission(submit(score), rsna / LABELS, 100, 0)
    assert "scored 60 of the 60" in note
    assert found["sensitivity"] == found["specificity"] == found["rsna_score"] == found["auroc"] == 1
    assert found["score_thresh"] is None
    found, _ = score_submission(submit(score, wrong=3), rsna / LABELS, 100, 0)
    assert found["sensitivity"] == 1
    assert found["specificity"] == pytest.approx(27 / 30)


def test_a_threshold_drops_what_is_not_above_it(submit, rsna):
    found, _ = score_submission(submit(0.5), rsna / LABELS, 100, 0, score_thresh=0.5)
    assert (found["sensitivity"], found["specificity"]) == (0, 1)
    found, _ = score_submission(submit(-0.5), rsna / LABELS, 100, 0, score_thresh=-1.0)
    assert (found["sensitivity"], found["specificity"]) == (1, 1)


def test_a_comparison_without_a_threshold(submit, rsna):
    table, _ = compare_submissions(submit(0.9), submit(0.9, "other.csv", wrong=6), rsna / LABELS, 100, 0)
    assert table["specificity"]["difference"] == pytest.approx(6 / 30)
    assert table["sensitivity"]["difference"] == 0
    table, _ = compare_submissions(submit(0.9), submit(0.3, "other.csv"), rsna / LABELS, 100, 0, score_thresh=0.5)
    assert table["sensitivity"]["difference"] == 1


def test_labels_of_any_name_alone_in_a_folder(submit, rsna, tmp_path):
    other = tmp_path / "elsewhere" / "truth of june.txt"
    other.parent.mkdir()
    other.write_bytes((rsna / LABELS).read_text().replace(",", ";").encode("utf-16"))
    found, note = score_submission(submit(0.9), other, 100, 0)
    assert found["rsna_score"] == 1
    assert f"no {GROUPS}, so each image counts as a patient" in note
    (other.parent / CLASSES).write_text("of other labels")
    assert score_submission(submit(0.9), other, 100, 0)[0] == found


def test_ids_that_are_written_otherwise(submit, rsna):
    path = submit(0.9)
    table = pd.read_csv(path, keep_default_na=False)
    table.assign(patientId=table["patientId"] + ".dcm").to_csv(path, index=False)
    with pytest.raises(
        UserError, match=r"has no label in .*did you mean '.*'\? 60 of 60 ids match after removing '.dcm'"
    ):
        score_submission(path, rsna / LABELS, 100, 0)


def test_splits_as_people_have_them(submit, rsna, truth, tmp_path):
    keys = truth.studies["patientId"].to_list()
    rows = [f'"{number}";"{key}";"{"test" if number < 12 else "train"}"' for number, key in enumerate(keys)]
    (tmp_path / "splits.csv").write_text("\r\n".join(['"patientId";"Split"', *rows]))
    _, note = score_submission(submit(0.9), rsna / LABELS, 100, 0, split=(tmp_path / "splits.csv", "test"))
    assert "scored 12 of the 60" in note
    with pytest.raises(UserError, match="no study is in the split 'tset'; the table has 'test', 'train'"):
        score_submission(submit(0.9), rsna / LABELS, 100, 0, split=(tmp_path / "splits.csv", "tset"))


def test_the_command(submit, rsna, run, tmp_path):
    labels = (rsna / LABELS).rename(rsna / "my_labels.csv")
    done = run("pipeline.cli", "score", submit(0.9), labels, "--draws", "100")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["sensitivity"], found["specificity"], found["score_thresh"]) == (1, 1, None)
    assert run("pipeline.cli", "score", submit(0.9), labels, "--score-thresh", "nan").returncode == 2
    made = run("pipeline.cli", "sample", tmp_path / "made", "--labels", labels, "--size", "128", "--workers", "1")
    assert made.returncode == 0, made.stderr
    assert len(read_annotations(tmp_path / "made").studies) == 60
