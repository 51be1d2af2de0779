"""A closed terminal ends a process even if its parent, the first of the session, does not pass SIGHUP on."""

import sys
import time

from tests.conftest import REPOSITORY
from tests.flows.terminal import Terminal

# Like `make`, the parent handles SIGHUP and goes on waiting for its child.
_PARENT = """
import signal, subprocess, sys
signal.signal(signal.SIGHUP, lambda *_: None)
subprocess.run([sys.executable, "-c", sys.argv[1]])
"""
_CHILD = """
import pathlib, signal, sys, time
from flows.hang_up import watch_terminal
signal.signal(signal.SIGHUP, lambda *_: sys.exit(pathlib.Path("told").touch()))
watch_terminal()
pathlib.Path("ready").touch()
time.sleep(60)
"""


def test_a_child_notices_that_its_terminal_is_closed(tmp_path):
    env = {"PYTHONPATH": str(REPOSITORY), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    shown = Terminal([sys.executable, "-c", _PARENT, _CHILD], tmp_path, env)
    try:
        shown.wait_for(lambda: (tmp_path / "ready").exists())
        time.sleep(0.5)
        assert not (tmp_path / "told").exists()
        shown.close()
        shown.process.wait(10)
        assert (tmp_path / "told").exists()
    finally:
        shown.end()
