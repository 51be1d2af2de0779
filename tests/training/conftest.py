"""Fixtures of the training tests: they share the network and the data of the tests of `detection`."""

import os
import signal
import subprocess
import sys
import time

import pytest

from tests.detection.conftest import (  # noqa: F401
    _seed,
    architecture,
    dataset,
    loss_settings,
    post_processing,
    squares,
    train_settings,
)  # fmt: skip

STARTER = """
import subprocess, sys
for _ in range(int(sys.argv[1])):
    command = [sys.executable, "-c", "while True: pass"]
    print(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).pid)
"""


@pytest.fixture
def foreign_load():
    """A busy process for each core, started by a process that has ended: our own children's time is ours."""
    command = [sys.executable, "-c", STARTER, str(os.cpu_count())]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    time.sleep(0.5)
    yield
    for pid in done.stdout.split():
        os.kill(int(pid), signal.SIGKILL)
