"""Notice that the terminal has been closed, also when no other process passes SIGHUP on.

Linux sends SIGHUP to the first process of the session only. A shell passes it on. `make` as the first process
(``ssh -t host make demo``) does not: it waits until we end.
"""

import contextlib
import os
import select
import signal
import threading


def watch_terminal() -> None:
    """Send this process SIGHUP when its terminal goes, if it was started in the foreground of one."""
    for descriptor in (0, 1, 2):
        with contextlib.suppress(OSError):  # no terminal
            if os.tcgetpgrp(descriptor) == os.getpgrp():
                threading.Thread(target=_wait, args=(descriptor,), daemon=True).start()
                return


def _wait(descriptor: int) -> None:
    poll = select.poll()
    poll.register(descriptor, 0)  # errors and hang-ups alone
    poll.poll()
    os.kill(os.getpid(), signal.SIGHUP)
