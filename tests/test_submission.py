import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import UserError
from pipeline.submission import read_submission, submission_table

number = st.floats(0, 1000).map(lambda value: round(value, 1))
box = st.tuples(number, number, st.floats(1, 500), st.floats(1, 500))


@given(st.lists(st.lists(st.tuples(st.floats(0, 1), box), max_size=4), min_size=1, max_size=5))
def test_what_is_written_is_read(tmp_path_factory, studies):
    path = tmp_path_factory.mktemp("s") / "p.csv"
    boxes = [np.array([[x, y, x + w, y + h] for _, (x, y, w, h) in rows]).reshape(-1, 4) for rows in studies]
    scores = [np.array([score for score, _ in rows]) for rows in studies]
    labels = [np.zeros(len(one), np.int64) for one in scores]
    path.write_text(submission_table([f"s{i}" for i in range(len(studies))], boxes, scores, labels, ["opacity"]))
    found = read_submission(path)
    assert list(found) == [f"s{i}" for i in range(len(studies))]
    for (read_boxes, read_scores, _), wanted, score in zip(found.values(), boxes, scores, strict=True):
        np.testing.assert_allclose(read_boxes, wanted, atol=0.11)
        np.testing.assert_allclose(read_scores, score, atol=5e-5)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("patientId,PredictionString\na,0.5 1 2 3\n", "line 2: 4 numbers"),
        ("patientId,PredictionString\nb,\na,0.5 1 2 x 4\n", "line 3: '0.5 1 2 x 4': numbers only"),
        ("patientId,PredictionString\na,0.5 1 2 0 4\n", "line 2: .*positive width"),
        ("patientId,PredictionString\na,nan 1 2 3 4\n", "line 2: .*finite"),
        ("patientId,PredictionString\na,\na,\n", "line 3: 'a' occurs twice"),
        ("patientId\na\n", "column 'PredictionString' is missing"),
        ("", "not a CSV table"),
    ],
)
def test_malformed_files(tmp_path, text, message):
    (tmp_path / "p.csv").write_text(text)
    with pytest.raises(UserError, match=message):
        read_submission(tmp_path / "p.csv")


CLASSES = ("opacity", "Nodule/Mass", "other")


@given(st.lists(st.lists(st.tuples(st.floats(0, 1), box, st.integers(0, 2)), max_size=5), min_size=1, max_size=4))
def test_classes_are_written_and_read(tmp_path_factory, studies):
    path = tmp_path_factory.mktemp("s") / "p.csv"
    boxes = [np.array([[x, y, x + w, y + h] for _, (x, y, w, h), _ in rows]).reshape(-1, 4) for rows in studies]
    scores = [np.array([score for score, _, _ in rows]) for rows in studies]
    labels = [np.array([label for *_, label in rows], np.int64) for rows in studies]
    path.write_text(submission_table([f"s{i}" for i in range(len(studies))], boxes, scores, labels, CLASSES, (9, 3)))
    found = read_submission(path, CLASSES)
    for read, box, score, label in zip(found.values(), boxes, scores, labels, strict=True):
        for number in range(3):
            np.testing.assert_allclose(read.scores[read.labels == number], score[label == number], atol=1e-8)
            np.testing.assert_allclose(read.boxes[read.labels == number], box[label == number], atol=2e-3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "nodule/MASS: .5 1 2 3 4; fracture: .5 1 2 3 4",
            "line 2: class 'fracture': must be one of: opacity, N",
        ),
        (".5 1 2 3 4", "line 2: detections without a class"),
        ("opacity: .5 1 2 3", "line 2: 4 numbers"),
        ("opacity: .5 1 2 3 4;", "line 2: class '': must be one of"),
    ],
)
def test_malformed_classes(tmp_path, text, message):
    (tmp_path / "p.csv").write_text(f"patientId,PredictionString\na,{text}\n")
    with pytest.raises(UserError, match=message):
        read_submission(tmp_path / "p.csv", CLASSES)
