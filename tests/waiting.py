"""Waiting for something to happen, instead of for a time in which it should have happened."""

import time


def wait_until(condition, seconds=60, *, process=None, pause=0.05):
    """Return the first true result of ``condition``; fail after ``seconds``, or as soon as ``process`` has ended."""
    end = time.monotonic() + seconds
    while not (result := condition()):
        assert process is None or process.poll() is None, f"the process ended with {process.returncode}"
        assert time.monotonic() < end, f"did not happen within {seconds} s"
        time.sleep(pause)
    return result
