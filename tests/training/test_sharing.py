"""The line that tells that other processes use the CPU too, and how well a network's threads share it."""

import logging
import os
import subprocess
import sys
import time

import pytest

from benchmarks.sharing import busy_processes
from pipeline.training.sharing import OtherProcesses, own_time

CORES = os.cpu_count()


STARTER = """
import subprocess, sys
for _ in range(int(sys.argv[1])):
    command = [sys.executable, "-c", "while True: pass"]
    print(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).pid)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the time of all processes, which other systems may hide")
def test_the_log_tells_once_that_other_processes_use_the_machine(caplog):
    caplog.set_level(logging.INFO)
    # Started by another process, as a browser is: our own children's time is ours.
    done = subprocess.run([sys.executable, "-c", STARTER, str(CORES)], capture_output=True, text=True, check=True)
    pids = [int(pid) for pid in done.stdout.split()]
    try:
        time.sleep(0.5)
        others = OtherProcesses(seconds=1.0)
        others.look()
        assert not caplog.records  # too early to tell
        for _ in range(2):
            time.sleep(1.2)
            others.look()
    finally:
        for pid in pids:
            os.kill(pid, 9)
    (line,) = caplog.messages
    assert f"of the {CORES} cores: training is slower while they do" in line


def test_the_time_of_processes_that_we_started_is_ours():
    before = own_time()
    with busy_processes(1):
        deadline = time.monotonic() + 20
        while own_time() - before < 0.5:
            assert time.monotonic() < deadline
            time.sleep(0.1)  # which uses hardly any time of our own


PAUSES = """
import time
import pipeline
import torch
values = torch.rand(400, 400)
def times():
    started, used = time.perf_counter(), time.process_time()
    for _ in range(300):
        values.add(1.0)  # by all threads
        time.sleep(0.002)
    return (time.process_time() - used) / (time.perf_counter() - started)
times()
print(torch.get_num_threads(), times())
"""


def test_threads_sleep_while_they_wait():
    """Threads that spin in the pauses between the steps use most of the time of a core, which others may need."""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    done = subprocess.run([sys.executable, "-c", PAUSES], env=environment, check=True, capture_output=True, text=True)
    threads, used = done.stdout.split()
    if int(threads) == 1:
        pytest.skip("one core: no thread waits")
    assert float(used) < 0.25
