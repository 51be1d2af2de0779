"""The start and the end of commands: the garbage collector, exit codes, and all that must not be lost."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

PROBE = """
import atexit, gc, sys
from pipeline.errors import UserError, run_main

class Kept:
    def __del__(self):
        print("taken apart")

kept = Kept()
while_importing = gc.isenabled()
atexit.register(print, "told at the end")

def main():
    print("collects:", while_importing, gc.isenabled())
    if sys.argv[1:] == ["error"]:
        raise UserError("a rule")
    if sys.argv[1:]:
        raise SystemExit(int(sys.argv[1]))

if __name__ == "__main__":
    run_main(main)
"""


@pytest.fixture
def probe(tmp_path):
    folder = tmp_path / "flows"
    folder.mkdir()
    (folder / "__init__.py").write_text("import pipeline")
    (folder / "probe.py").write_text(PROBE)

    def run(*command, stdout=subprocess.PIPE):
        environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{REPOSITORY}"}
        environment.pop("PYTHONUNBUFFERED", None)
        done = subprocess.run(
            [sys.executable, *command], env=environment, stdout=stdout, stderr=subprocess.PIPE, text=True, check=False
        )
        return done.returncode, done.stdout and done.stdout.splitlines(), done.stderr

    return run


def test_a_command_is_not_taken_apart_and_loses_nothing(probe):
    quick = ["collects: False True", "told at the end"]
    assert probe("-m", "flows.probe") == (0, quick, "")
    assert probe("-m", "flows.probe", "3") == (3, quick, "")
    assert probe("-m", "flows.probe", "error") == (1, quick, "error: a rule\n")


def test_other_processes_are_left_as_they_are(probe, tmp_path):
    usual = ["collects: True True", "told at the end", "taken apart"]
    assert probe(tmp_path / "flows/probe.py") == (0, usual, "")
    script = "import sys; sys.argv = ['other']; from flows import probe; probe.run_main(probe.main)"
    assert probe("-c", script) == (0, usual, "")


def test_an_output_that_cannot_be_written_is_reported(probe):
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    with Path("/dev/full").open("w") as full:
        code, _, said = probe("-m", "flows.probe", stdout=full)
    assert code == 120
    assert "No space left on device" in said


def commands():
    """List the files of modules that `python -m` runs; DVC's guard is run as a file, and imports nothing of ours."""
    files = [path for package in ("pipeline", "flows") for path in (REPOSITORY / package).rglob("*.py")]
    found = [path for path in files if '__name__ == "__main__"' in path.read_text() and path.name != "guard.py"]
    return sorted(str(path.relative_to(REPOSITORY)) for path in found)


@pytest.mark.parametrize("path", commands())
def test_each_command_lets_the_garbage_collector_work_again(path):
    text = (REPOSITORY / path).read_text()
    assert "run_main(" in text or "lifetime.imported()" in text
