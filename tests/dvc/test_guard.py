"""Processes that a flow has started end with the flow, however it ends; one run at a time works in a folder."""

import json
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from pipeline.dvc.command import changed, run_command
from pipeline.errors import UserError
from pipeline.folder_lock import BusyError, only_one

# A flow that holds the folder's lock, and runs a command that prints its process id and then sleeps for 600 s.
FLOW = """
import sys
from pathlib import Path
from pipeline.dvc.command import changed, run_command
from pipeline.folder_lock import only_one
work = "import os, time; print(os.getpid(), flush=True); time.sleep(600)"
with only_one(Path("lock"), "training run"):
    run_command("work", ["-c", work], lambda line: print(line, flush=True))
"""


@pytest.fixture
def flow(repository, tmp_path):
    """Start a flow; yield its process and the process id of its command."""
    environment = {**os.environ, "PYTHONPATH": str(repository)}
    process = subprocess.Popen(
        [sys.executable, "-c", FLOW], cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True
    )
    yield process, int(process.stdout.readline())
    process.kill()
    process.wait()
    process.stdout.close()


def gone(pid, seconds=10):
    deadline = time.monotonic() + seconds
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGHUP])
def test_a_command_ends_with_its_flow(flow, number):
    process, work = flow
    assert psutil.pid_exists(work)
    process.send_signal(number)
    assert gone(work)


def test_a_second_run_is_told_who_is_at_work(flow, tmp_path):
    process, _ = flow
    said = rf"another training run holds it: process {process.pid}, since 20\d\d-"
    with pytest.raises(BusyError, match=said), only_one(tmp_path / "lock", "training run"):
        pytest.fail("two at work")


def test_the_lock_of_a_killed_run_is_free_once_its_work_has_ended(flow, tmp_path):
    process, work = flow
    process.kill()
    assert gone(process.pid)  # a zombie, since no process has waited for it
    with only_one(tmp_path / "lock", "training run"):
        assert gone(work, 0)
        assert json.loads((tmp_path / "lock").read_text())["pid"] == os.getpid()
    assert (tmp_path / "lock").read_text() == ""


def test_the_commands_own_reason_and_output(tmp_path):
    lines = []
    code = "import sys; print('one'); print('error: params.yaml: wrong', file=sys.stderr); sys.exit(1)"
    with pytest.raises(UserError, match=r"^work \(exit code 1\): params.yaml: wrong$"):
        run_command("work", ["-c", code], lines.append)
    assert "one" in lines


def test_a_full_disk_that_dvc_does_not_name():
    code = (
        "import sys; print(\"ERROR: failed to reproduce 'train': [Errno 28] No space left on device\"); sys.exit(255)"
    )
    with pytest.raises(UserError, match=r"No space left on device; the disk of this folder or that of DVC's cache"):
        run_command("dvc", ["-c", code], lambda _: None)


def test_a_folder_without_git_gets_the_cures_and_both_work(tmp_path, monkeypatch):
    for name in ("git", "no_scm"):
        (tmp_path / name / ".dvc").mkdir(parents=True)
    said = "is not a git repository; `git init` makes it one, `dvc config core.no_scm true` lets DVC work without"
    for name, cure in (("git", ["git", "init", "-q"]), ("no_scm", ["dvc", "config", "core.no_scm", "true"])):
        monkeypatch.chdir(tmp_path / name)
        with pytest.raises(UserError, match=f"{name} {said}$"):
            changed()
        subprocess.run([sys.executable, "-m", *cure] if cure[0] == "dvc" else cure, check=True)
        assert changed() == {}


def test_a_shell_that_is_not_there_does_not_matter(monkeypatch):
    monkeypatch.setenv("SHELL", "/bin/not-there")
    lines = []
    run_command("work", ["-c", "import os; os.system(os.environ['SHELL'] + ' -c \"echo fine\"')"], lines.append)
    assert lines == ["fine"]
