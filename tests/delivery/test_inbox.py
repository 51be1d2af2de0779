import csv
import hashlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pydicom
import pytest
import torch
from filelock import FileLock

from pipeline.data.annotations import IMAGES
from pipeline.delivery.inbox import InboxResult, score_inbox
from pipeline.delivery.incoming import read_regular
from pipeline.delivery.predictor import Predictor
from pipeline.errors import UserError


@pytest.fixture
def look(trained, reader, tmp_path):
    """Score the new studies in tmp_path/in."""
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
    gone.symlink_to(tmp_path / "nowhere")  # a listed file that does not exist
    assert look() == InboxResult(1, 0, 0)
    assert rows(tmp_path)[0]["file"] == r"\udcff\udcfe.dcm"


def test_files_are_found_by_their_content(look, arrive, tmp_path):
    arrive(0, "IM0001")
    arrive(1, "deep/er/b.DCM")
    (tmp_path / "in/notes.txt").write_text("no study")
    assert look() == InboxResult(2, 0, 0)
    assert [row["file"] for row in rows(tmp_path)] == ["IM0001", "b.DCM"]


def test_odd_entries_are_said_and_the_rest_is_scored(look, arrive, tmp_path, caplog):
    inbox = tmp_path / "in"
    arrive(0)
    os.mkfifo(inbox / "fifo.dcm")
    (inbox / "folder.dcm").mkdir()
    (inbox / "loop.dcm").symlink_to("loop.dcm")
    (inbox / "round").symlink_to(inbox, target_is_directory=True)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(inbox / "\x1b[31ms.dcm"))
        assert look() == InboxResult(1, 0, 0)
        assert look() == InboxResult(0, 0, 0)
    said = [line for line in caplog.messages if "fifo.dcm" in line]
    assert len(said) == 2  # once for each look
    for name in ("loop.dcm", "round", r"\x1b[31ms.dcm"):
        assert any(name in line for line in caplog.messages), name
    assert all(message.isprintable() for message in caplog.messages)
    assert len(rows(tmp_path)) == 1


def test_what_cannot_be_read_for_the_moment_is_tried_again(look, arrive, tmp_path, caplog, monkeypatch):
    locked, seen = arrive(0), arrive(1)
    for error in (PermissionError(13, "Permission denied"), OSError(5, "Input/output error"), OSError(26, "busy")):

        def read(path, error=error):
            if path == locked:
                raise error
            return read_regular(path)

        monkeypatch.setattr("pipeline.delivery.inbox.read_regular", read)
        caplog.clear()
        assert look().unsettled == 1
        assert f"{locked}: cannot be read now ({error.strerror})" in caplog.text
    assert [row["file"] for row in rows(tmp_path)] == [seen.name]
    monkeypatch.undo()
    assert look() == InboxResult(1, 0, 0)


def test_a_reader_that_cannot_work_for_the_moment_gives_no_verdict(look, arrive, tmp_path, reader, monkeypatch):
    arrive(0)
    monkeypatch.setattr(reader, "read", lambda source: (_ for _ in ()).throw(OSError(12, "Cannot allocate memory")))
    assert look() == InboxResult(0, 0, 1)
    assert rows(tmp_path) == []
    monkeypatch.undo()
    assert look() == InboxResult(1, 0, 0)


def test_the_bytes_that_were_digested_are_scored(look, arrive, tmp_path, reader, monkeypatch):
    """Replace a file between the digest and the reading: it is scored as it was when it was digested."""
    path, other = arrive(0), arrive(1, "../other.dcm")
    before, real = path.read_bytes(), reader.read

    def read(source):
        path.write_bytes(other.read_bytes())
        return real(source)

    monkeypatch.setattr(reader, "read", read)
    assert look() == InboxResult(1, 0, 0)
    monkeypatch.undo()
    (first,) = rows(tmp_path)
    assert first["sha256"] == hashlib.sha256(before).hexdigest()
    assert look() == InboxResult(1, 0, 0)
    second = rows(tmp_path)[1]
    assert second["sha256"] == hashlib.sha256(other.read_bytes()).hexdigest()
    assert second["grey_mean"] != first["grey_mean"]


def test_a_verdict_on_the_content_is_final_and_said(look, arrive, tmp_path, caplog):
    path = arrive(0, "=x.dcm")
    path.write_bytes(path.read_bytes()[:700])
    assert look() == InboxResult(0, 1, 0)
    assert f"passed over {path}: " in caplog.text
    caplog.clear()
    assert look() == InboxResult(0, 0, 0)
    assert caplog.text == ""
    assert [row["file"] for row in rows(tmp_path)] == ["'=x.dcm"]


def test_hardly_any_contrast_is_scored_with_a_warning(look, arrive, tmp_path):
    path = arrive(0)
    study = pydicom.dcmread(path)
    pixels = np.full((study.Rows, study.Columns), 255, np.uint8)
    pixels[: study.Rows // 50] = 200
    study.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    study.PixelData = pixels.tobytes()
    study["PixelData"].is_undefined_length = False
    study.save_as(path)
    assert look() == InboxResult(1, 0, 0)
    (row,) = rows(tmp_path)
    assert row["problem"] == "hardly any contrast, or nearly all black or white"
    assert 0 <= float(row["image_score"]) <= 1
    assert float(row["grey_mean"]) > 200


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


@pytest.mark.long
def test_killed_at_any_moment_each_study_is_scored_once(trained, sample, tmp_path):
    """Send SIGKILL to the real command repeatedly: in the end, every study has one line, and nothing else is left."""
    inbox, out, scratch = tmp_path / "in", tmp_path / "out", tmp_path / "scratch"
    scratch.mkdir()
    shutil.copytree(sample / IMAGES, inbox)
    (inbox / "broken.dcm").write_bytes(b"no DICOM")
    command = [sys.executable, "-m", "pipeline.cli", "inbox", str(trained[0] / "models"), str(inbox), "--out", str(out)]
    command += ["--settle-seconds", "0", "--batch-size", "2"]
    environment = {**os.environ, "TMPDIR": str(scratch), "PYTHONPATH": os.pathsep.join(sys.path)}
    lines = 0
    for _ in range(3):
        process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        while process.poll() is None and count_lines(out) < lines + 6:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        lines = count_lines(out)
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    table = rows(tmp_path)
    assert len({row["sha256"] for row in table}) == len(table) == len(list(inbox.iterdir()))
    assert [row["file"] for row in table if row["problem"]] == ["broken.dcm"]
    assert {path.name for path in out.iterdir()} <= {"scored.csv", "scored.damaged.csv", ".scored.lock"}
    assert list(scratch.iterdir()) == []


def count_lines(out):
    return (out / "scored.csv").read_bytes().count(b"\n") if (out / "scored.csv").exists() else 0
