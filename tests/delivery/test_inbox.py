import csv
import os
import shutil

import pytest
import torch
from filelock import FileLock

from pipeline.data.annotations import IMAGES
from pipeline.delivery.inbox import InboxResult, score_inbox
from pipeline.delivery.predictor import Predictor
from pipeline.errors import UserError


@pytest.fixture
def look(trained, reader, tmp_path):
    """Score what is new in tmp_path/in."""
    predictor = Predictor(trained[0] / "models", torch.device("cpu"))
    (tmp_path / "in").mkdir()
    return lambda settle=0.0: score_inbox(predictor, reader, "models", tmp_path / "in", tmp_path / "out", 2, settle)


@pytest.fixture
def arrive(sample, tmp_path):
    files = sorted((sample / IMAGES).glob("*.dcm"))

    def put(number, name=None):
        target = tmp_path / "in" / (name or files[number].name)
        target.parent.mkdir(parents=True, exist_ok=True)
        return shutil.copyfile(files[number], target)

    return put


def rows(tmp_path):
    with (tmp_path / "out/scored.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_each_study_is_scored_once(look, arrive, tmp_path):
    for number in range(3):
        arrive(number)
    assert look() == InboxResult(3, 0, 0)
    assert look() == InboxResult(0, 0, 0)
    arrive(0, "again/under-another-name.dcm")
    arrive(3)
    (tmp_path / "in/broken.dcm").write_bytes(b"no DICOM")
    assert look() == InboxResult(1, 1, 0)
    assert look() == InboxResult(0, 0, 0)
    table = rows(tmp_path)
    assert len({row["sha256"] for row in table}) == len(table) == 5
    assert [row["file"] for row in table if row["problem"]] == ["broken.dcm"]
    assert all(0 <= float(row["image_score"]) <= 1 for row in table if not row["problem"])


def test_after_a_kill_half_a_line_is_dropped(look, arrive, tmp_path):
    for number in range(3):
        arrive(number)
    look()
    content = (tmp_path / "out/scored.csv").read_bytes()
    (tmp_path / "out/scored.csv").write_bytes(content[:-7])
    assert look() == InboxResult(1, 0, 0)
    table = rows(tmp_path)
    assert len({row["sha256"] for row in table}) == len(table) == 3
    assert all(row["scored_at"] for row in table)


def test_files_that_still_arrive_wait(look, arrive, tmp_path):
    path = arrive(0)
    assert look(settle=60) == InboxResult(0, 0, 1)
    os.utime(path, (0, 0))
    assert look(settle=60) == InboxResult(1, 0, 0)


def test_names_with_line_breaks_stay_one_line(look, arrive, tmp_path):
    arrive(0, 'a\nb,"c.dcm')
    assert look() == InboxResult(1, 0, 0)
    assert rows(tmp_path)[0]["file"] == 'a b,"c.dcm'
    assert look() == InboxResult(0, 0, 0)


def test_names_of_any_bytes_and_files_that_vanish(look, arrive, tmp_path):
    arrive(0, os.fsdecode(b"\xff\xfe.dcm"))
    gone = tmp_path / "in/gone.dcm"
    gone.symlink_to(tmp_path / "nowhere")  # listed, and not there
    assert look() == InboxResult(1, 0, 0)
    assert rows(tmp_path)[0]["file"] == r"\udcff\udcfe.dcm"


def test_errors(look, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/scored.csv").write_text("something else\n")
    with pytest.raises(UserError, match="not a table of scored studies"):
        look()
    with FileLock(tmp_path / "out/.scored.lock"), pytest.raises(UserError, match="another process is writing"):
        look()
    (tmp_path / "in").rmdir()
    with pytest.raises(UserError, match="in: no such folder"):
        look()
