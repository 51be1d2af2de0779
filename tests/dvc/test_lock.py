"""DVC's lock on files: errors name its holder, and entries that dead processes left in it stop no run."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.dvc.command import run_dvc
from pipeline.folder_lock import BusyError

ENTRIES = Path(".dvc/tmp/rwlock")
PIPELINE = """
stages:
  write:
    cmd: {command}
    outs: [out]
"""


@pytest.fixture
def project(tmp_path):
    """Make a DVC folder; call the fixture with the command of its one stage."""
    subprocess.run([sys.executable, "-m", "dvc", "init", "-q", "--no-scm"], check=True)
    return lambda command: Path("dvc.yaml").write_text(PIPELINE.format(command=command))


def held_by(pid, command):
    holder = {"pid": pid, "cmd": command}
    return json.dumps({"write": {str(Path("out").resolve()): holder}, "read": {str(Path("in").resolve()): [holder]}})


def repro():
    run_dvc(["repro", "write"], lambda _: None)


@pytest.mark.parametrize(
    "entries",
    [held_by(1, "dvc repro"), held_by(2**22 + 1, "dvc repro"), '{"write": {"/pro', "[]", '{"write": {"/p": 3}}', ""],
    ids=["number taken by another program", "no such process", "cut off", "no object", "no holder", "empty"],
)
def test_entries_of_dead_processes_are_dropped(project, caplog, entries):
    project("echo 1 > out")
    ENTRIES.parent.mkdir(exist_ok=True)
    ENTRIES.write_text(entries)
    repro()
    assert Path("out").read_text() == "1\n"
    assert str(ENTRIES) in caplog.text
    assert "pid" not in ENTRIES.read_text()


def test_a_command_at_work_is_named_and_keeps_its_lock(project):
    # The stage waits until this test writes into the pipe.
    project("cat go > out")
    os.mkfifo("go")
    first = subprocess.Popen([sys.executable, "-m", "dvc", "repro", "write"], stdout=subprocess.PIPE, text=True)
    try:
        assert any(line.startswith("Running stage") for line in first.stdout)
        said = rf"failed to reproduce 'write': '.*/out': `dvc repro write` holds it: process {first.pid}, since 20\d\d-"
        with pytest.raises(BusyError, match=said):
            repro()
        Path("go").write_text("2\n")
        assert first.wait(30) == 0
        assert Path("out").read_text() == "2\n"
        repro()
    finally:
        first.kill()
        first.communicate()
