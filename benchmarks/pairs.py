"""Comparison of two functions in one process; they take turns, so that a shared machine slows both alike."""

import statistics
import time
from collections.abc import Callable


def compare(name: str, ours: Callable[[], object], peer: Callable[[], object], pairs: int) -> float:
    """Time ``pairs`` alternating calls, after one warm-up call each; print and return the median ratio peer / ours."""
    ours()
    peer()
    times = [(_seconds(ours), _seconds(peer)) for _ in range(pairs)]
    ratio = statistics.median(theirs / own for own, theirs in times)
    own, theirs = (statistics.median(column) for column in zip(*times, strict=True))
    print(f"{name}: {ratio:.2f} x  (ours {own:.3f} s, peer {theirs:.3f} s, medians of {pairs} pairs)", flush=True)
    return ratio


def _seconds(function: Callable[[], object]) -> float:
    started = time.perf_counter()
    function()
    return time.perf_counter() - started
