"""A line in the log when other processes slow down training on a CPU."""

import contextlib
import logging
import os
import time
from typing import ClassVar

import psutil

logger = logging.getLogger(__name__)

_LEAST_CORES = 0.5
_BUSY_SHARE = 0.9  # a machine with idle cores slows nobody down


class OtherProcesses:
    """Measures the CPU time of other processes; the log tells once when they slow this one down."""

    # Between two looks. A shorter time would make a line of every short task.
    seconds: ClassVar = 10.0

    def __init__(self) -> None:
        self._said = False
        self._looked, self._machine, self._own = time.monotonic(), _machine_time(), own_time()

    def look(self) -> None:
        """Compare with the last look, if that was long enough ago."""
        now = time.monotonic()
        passed = now - self._looked
        if self._said or passed < self.seconds:
            return
        machine, own = _machine_time(), own_time()
        busy = (machine - self._machine) / passed
        others = busy - (own - self._own) / passed
        self._looked, self._machine, self._own = now, machine, own
        cores = os.cpu_count() or 1
        if others >= _LEAST_CORES and busy >= _BUSY_SHARE * cores:
            logger.info("other processes use %.1f of the %d cores: training is slower while they do", others, cores)
            self._said = True


def _machine_time() -> float:
    """Return the seconds of CPU time that all processes have used."""
    times = psutil.cpu_times()
    return float(times.user + times.system + getattr(times, "nice", 0.0))


def own_time() -> float:
    """Return the seconds of CPU time that this process and those that it started, running or ended, have used."""
    own = psutil.Process()
    total = 0.0
    for process in [own, *own.children(recursive=True)]:
        with contextlib.suppress(psutil.Error):  # it has just ended
            times = process.cpu_times()
            total += times.user + times.system + times.children_user + times.children_system
    return total
