"""Whether other processes use the machine on whose CPU a network trains."""

import contextlib
import logging
import os
import time

import psutil

logger = logging.getLogger(__name__)

_SECONDS = 10.0  # a shorter time would make a line of every short task
_LEAST_CORES = 0.5
_BUSY_SHARE = 0.9  # a machine with idle cores slows nobody down


class OtherProcesses:
    """The CPU time of other processes; the log tells once when they slow this one down."""

    def __init__(self, seconds: float = _SECONDS) -> None:
        self._seconds, self._said = seconds, False
        self._looked, self._machine, self._own = time.monotonic(), _machine_time(), own_time()

    def look(self) -> None:
        """Compare with the last look, if that was long enough ago."""
        now = time.monotonic()
        passed = now - self._looked
        if self._said or passed < self._seconds:
            return
        machine, own = _machine_time(), own_time()
        busy, others = ((machine - self._machine) / passed, (machine - self._machine - own + self._own) / passed)
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
    """Return the seconds of CPU time that this process and those that it started have used."""
    own = psutil.Process()
    total = 0.0
    for process in [own, *own.children(recursive=True)]:
        with contextlib.suppress(psutil.Error):  # it has just ended
            times = process.cpu_times()
            total += times.user + times.system
    return total
