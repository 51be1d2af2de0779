"""Signs of work: on a terminal only."""

import os
import subprocess
import sys

import pytest

from tests.flows.terminal import Terminal

BARS = {
    "items": "from pipeline.progress import with_progress as w\nlist(w(range(3), 'Reading'))",
    "steps": "from pipeline.progress import progress_of as p\nwith p('Reading', 2) as step:\n    step()\n    step()",
}


def on_terminal(code, folder):
    terminal = Terminal([sys.executable, "-c", code], folder, dict(os.environ))
    status, _ = terminal.wait(60)
    terminal.end()
    assert status == 0, terminal.text
    return terminal.text


@pytest.mark.parametrize("code", BARS.values(), ids=BARS)
def test_bars(code, tmp_path):
    shown = on_terminal(code, tmp_path)
    assert "Reading" in shown
    assert "100%" in shown
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == done.stderr == ""


def test_work_of_unknown_length(tmp_path):
    code = "import time\nfrom pipeline.progress import at_work\nwith at_work('exporting'):\n    time.sleep(0.5)"
    assert "exporting ..." in on_terminal(code, tmp_path)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == done.stderr == ""
