import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from pipeline.data.parallel import Workers, map_jobs
from pipeline.errors import UserError
from tests.waiting import wait_until


def double(number):
    return 2 * number


def die_on_three(number):
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def fail_on_three(number):
    if number == 3:
        raise ValueError("three")
    return number


@pytest.mark.parametrize("count", [1, 3])
def test_results_come_in_the_order_of_the_jobs(count):
    assert map_jobs(double, list(range(20)), Workers(count), "") == [2 * number for number in range(20)]


def test_a_dead_process_costs_its_own_job_only():
    assert map_jobs(die_on_three, list(range(8)), Workers(2), "") == [0, 1, 2, None, 4, 5, 6, 7]


def test_an_exception_stops_the_rest():
    with pytest.raises(ValueError, match="three"):
        map_jobs(fail_on_three, list(range(8)), Workers(2), "")


SLEEPERS = """
import sys, time
from tests.data.test_parallel import sleep
from pipeline.data.parallel import Workers, map_jobs
if __name__ == "__main__":
    map_jobs(sleep, [60] * 4, Workers(2), "")
"""


def sleep(seconds):
    time.sleep(seconds)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_no_process_survives_the_main_one(tmp_path, repository, number):
    (tmp_path / "main.py").write_text(SLEEPERS)
    environment = {**os.environ, "PYTHONPATH": str(repository)}
    main = subprocess.Popen([sys.executable, "main.py"], cwd=tmp_path, env=environment, start_new_session=True)
    try:
        wait_until(lambda: len(psutil.Process(main.pid).children(True)) >= 4)
        workers = psutil.Process(main.pid).children(True)
        main.send_signal(number)
        main.wait(20)
        _, alive = psutil.wait_procs(workers, timeout=10)
        assert not alive
    finally:
        main.kill()


def test_dask_that_is_not_there():
    with pytest.raises(UserError, match=r"preprocess.scheduler = 'tcp://127.0.0.1:9': no Dask scheduler answers"):
        map_jobs(double, [1], Workers(scheduler="tcp://127.0.0.1:9"), "")
    with pytest.raises(UserError, match="no Dask scheduler answers"):
        map_jobs(double, [1], Workers(scheduler="nonsense://"), "")
