"""SIGTERM and SIGINT: they end the process, or, while work must not be cut off, set a flag that the work checks."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from pipeline.errors import Killed

# Work that does not look at the flag is cut off after this many seconds.
PATIENCE_SECONDS = 10.0
_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stopping:
    """A record of whether a signal has asked this process to end."""

    def __init__(self) -> None:
        self.asked = False
        self._deferring = False

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Inside the block, only set ``asked`` at the first signal; a second, or ten seconds, raise `Killed`."""
        self._deferring = True
        try:
            yield
        finally:
            self._deferring = False
            if self.asked:
                signal.setitimer(signal.ITIMER_REAL, 0)

    def handle(self, number: int, _: FrameType | None) -> None:
        """Handle a signal."""
        if self._deferring and not self.asked and number != signal.SIGALRM:
            self.asked = True
            signal.setitimer(signal.ITIMER_REAL, PATIENCE_SECONDS)
            return
        raise Killed(f"signal {number}")


@contextmanager
def stop_signals() -> Iterator[Stopping]:
    """Handle both signals inside the block, but only in the main thread, because Python allows it only there."""
    stopping = Stopping()
    if threading.current_thread() is not threading.main_thread():
        yield stopping
        return
    before = {number: signal.signal(number, stopping.handle) for number in (*_SIGNALS, signal.SIGALRM)}
    try:
        yield stopping
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
