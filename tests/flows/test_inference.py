"""Studies arrive in a folder, and the flow scores them with the champion."""

import csv
import os
import shutil

import pytest

from pipeline.data.annotations import IMAGES
from tests.archive.peer import archive

pytestmark = pytest.mark.slow


@pytest.mark.long
def test_new_studies_are_scored_by_the_champion(trained, sample, call, tmp_path):
    folder = trained[0]
    files = sorted((sample / IMAGES).glob("*.dcm"))[:3]
    (tmp_path / "in").mkdir()
    command = ("flows.inference", str(tmp_path / "in"), "--out", str(tmp_path / "out"))
    for path in files[:2]:
        shutil.copy2(path, tmp_path / "in")  # with its modification time: it has settled
    (tmp_path / "in/broken.dcm").write_bytes(b"no DICOM")
    os.utime(tmp_path / "in/broken.dcm", (0, 0))
    done = call(folder, *command)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 studies scored, 1 passed over, 0 still arriving" in done.stdout + done.stderr
    shutil.copy2(files[2], tmp_path / "in")
    done = call(folder, *command)
    assert "1 studies scored" in done.stdout + done.stderr
    with (tmp_path / "out/scored.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["file"] for row in rows if not row["problem"]] == [path.name for path in files]
    assert [row["file"] for row in rows if row["problem"]] == ["broken.dcm"]
    assert {row["model"] for row in rows} == {"models:/rsna-retinanet@champion"}
    assert float(rows[0]["image_score"]) > 0
    done = call(folder, "flows.inference", str(tmp_path / "nowhere"), "--out", str(tmp_path / "out"))
    assert done.returncode == 1
    assert "nowhere: no such folder" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.long
def test_answers_wait_for_an_archive_that_is_away(trained, sample, call, tmp_path):
    (tmp_path / "in").mkdir()
    for path in sorted((sample / IMAGES).glob("*.dcm"))[:2]:
        shutil.copy2(path, tmp_path / "in")
    command = ("flows.inference", str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--answer")
    done = call(trained[0], *command, "PACS@127.0.0.1:9")
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    assert "0 answers sent, 2 wait" in said
    assert "the next run tries again" in said
    with archive() as (port, taken):
        done = call(trained[0], *command, f"PACS@127.0.0.1:{port}")
        assert "2 answers sent" in done.stdout + done.stderr
    assert len(set(taken)) == 6
