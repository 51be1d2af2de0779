"""A watch that notices when the terminal is closed, even if no other process passes SIGHUP on.

Linux sends SIGHUP only to the first process of the session. A shell passes it on. `make` as the first process
(``ssh -t host make demo``) does not: it waits until this process ends.
"""

import contextlib
import os
import select
import signal
import threading


def watch_terminal() -> None:
    """Send SIGHUP to this process when its terminal is closed, if it was started in the foreground of one."""
    for descriptor in (0, 1, 2):
        with contextlib.suppress(OSError):  # not a terminal
            if os.tcgetpgrp(descriptor) == os.getpgrp():
                threading.Thread(target=_wait, args=(descriptor,), daemon=True).start()
                return


def _wait(descriptor: int) -> None:
    poll = select.poll()
    poll.register(descriptor, 0)  # only errors and hang-ups
    poll.poll()
    os.kill(os.getpid(), signal.SIGHUP)
