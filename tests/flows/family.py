"""All processes that a command has started, whatever their session or parent is now."""

import contextlib
import uuid

import psutil

_MARK = "PNEUMOFLOW_TEST_MARK"


class Family:
    """The processes that carry a mark in their environment, inherited from an ancestor that was started with `env`."""

    def __init__(self):
        self._mark = uuid.uuid4().hex

    def env(self, env):
        """Return the environment to start the ancestor with."""
        return {**env, _MARK: self._mark}

    def members(self, *words):
        """Return the living processes, or only those whose command line has all of ``words``."""
        return [one for one in psutil.process_iter() if self._belongs(one, words)]

    def _belongs(self, process, words):
        with contextlib.suppress(psutil.Error):
            command = " ".join(process.cmdline())
            return (
                process.environ().get(_MARK) == self._mark
                and process.status() != psutil.STATUS_ZOMBIE
                and all(word in command for word in words)
            )
        return False

    def kill(self, *words):
        """Send SIGKILL to the processes that `members` returns; see `kill_at_once`."""
        kill_at_once(self.members(*words))


def kill_at_once(processes):
    """Send SIGKILL to all; suspend them first, so that none of them sees another die."""
    for name in ("suspend", "kill"):
        for one in processes:
            with contextlib.suppress(psutil.Error):
                getattr(one, name)()
    psutil.wait_procs(processes, timeout=10)
