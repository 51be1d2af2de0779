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


@pytest.mark.skipif(sys.platform != "linux", reason="reads the time of all processes, which other systems may hide")
def test_the_log_says_once_that_other_processes_use_the_machine(foreign_load, caplog, monkeypatch):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(OtherProcesses, "seconds", 1.0)
    others = OtherProcesses()
    others.look()
    assert not caplog.records  # too early to tell
    for _ in range(2):
        time.sleep(1.2)
        others.look()
    (line,) = caplog.messages
    assert f"of the {CORES} cores: training is slower while they do" in line


def test_the_time_of_processes_that_we_started_is_ours():
    before = own_time()
    with busy_processes(1):
        deadline = time.monotonic() + 20
        while own_time() - before < 0.5:
            assert time.monotonic() < deadline
            time.sleep(0.1)  # which uses hardly any time of our own
    assert own_time() - before >= 0.5  # also when they have ended


RATE = """
import sys
from benchmarks import sharing
sharing.SECONDS = 3.0
sharing.measure(sharing.WORK[sys.argv[1]], whole=False)
"""


@pytest.mark.slow
@pytest.mark.skipif(CORES < 2, reason="one core: no thread waits for another")
@pytest.mark.parametrize("work", ["train, batch 8", "detect, batch 8", "batch 1", "batch 1, ResNet-50, 512 px"])
def test_a_busy_machine_is_shared(work, repository):
    """Threads that wait for each other after each operation keep a hundredth; a fair share is a third."""
    rates = []
    environment = {**os.environ, "PYTHONPATH": str(repository)}
    for busy in (0, 2 * CORES):
        with busy_processes(busy):
            command = [sys.executable, "-c", RATE, work]
            done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
            rates.append(float(done.stdout))
    assert rates[1] >= 0.15 * rates[0]


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
    environment = {name: value for name, value in os.environ.items() if name != "GOMP_SPINCOUNT"}
    done = subprocess.run([sys.executable, "-c", PAUSES], env=environment, check=True, capture_output=True, text=True)
    threads, used = done.stdout.split()
    if int(threads) == 1:
        pytest.skip("one core: no thread waits")
    assert float(used) < 0.25
