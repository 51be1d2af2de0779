"""Runs of the train stage in one folder: each is killed at a random moment, and only the last one ends by itself.

Usage: train_and_kill.py KILLS. It is a separate process, which imports everything once and forks, so that each
attempt starts within a second.
"""

import os
import random
import signal
import sys
import time
from pathlib import Path

from pipeline.params import load_params
from pipeline.stages.train import train


def attempt():
    """Start the stage in a copy of this process."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            train(load_params())
            code = 0
        finally:
            os._exit(code)
    return pid


def newest():
    return max((path.name for path in Path("checkpoints").glob("*/step-*")), default="")


def main(kills):
    rng = random.Random(kills)
    for _ in range(kills):
        pid, before = attempt(), newest()
        # Each attempt gets at least one step further; most kills then fall within the writing of a checkpoint.
        while newest() == before:
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.3))
        os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        assert os.WIFSIGNALED(status), "the run was over before it was killed often enough"
    _, status = os.waitpid(attempt(), 0)
    raise SystemExit(os.waitstatus_to_exitcode(status))


if __name__ == "__main__":
    main(int(sys.argv[1]))
