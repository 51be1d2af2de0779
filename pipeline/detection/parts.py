"""A batch in parts on a CPU: each part is worked on by a thread of its own.

PyTorch by itself lets all cores work on one operation, and they wait for each other at its end, hundreds of times for
each image. If another process takes one of the cores, all wait for that one each time. The threads of parts wait for
each other once, at the end of the batch.
"""

import functools
import itertools
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

Part = TypeVar("Part")
Result = TypeVar("Result")
_turns = itertools.count()


def part_count(images: int, device: torch.device, least: int = 1) -> int:
    """Return the number of parts of a batch: one per core, each of at least ``least`` images; on a GPU there is one.

    It depends on the size of the batch and on ``torch.get_num_threads()`` alone.
    """
    return max(1, min(torch.get_num_threads(), images // least)) if device.type == "cpu" else 1


def map_parts(
    function: Callable[[Part], Result], parts: Sequence[Part], cores: int, *, large: bool = False
) -> list[Result]:
    """Apply ``function`` to each part at the same time, on ``cores`` cores together.

    The modes of the calling thread hold: autocast, and whether gradients are wanted. A single part has half of the
    cores, and all of them if it is ``large``: if its operations take so long that waiting for each other costs little.
    """
    cores_each = _cores_each(len(parts), cores, large)
    threads = _threads(cores // cores_each, cores_each)
    # The parts of a full batch always have the same threads, which then have their memory at hand.
    first = next(_turns) if len(parts) < len(threads) else 0
    modes = (torch.is_grad_enabled(), torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu"))

    def run(part: Part) -> Result:
        grad, autocast, dtype = modes
        # All threads would share the cache of weights in bfloat16, and the first to end would empty it for the others:
        # how gradients add up would depend on the time.
        with torch.set_grad_enabled(grad), torch.autocast("cpu", dtype, enabled=autocast, cache_enabled=False):
            return function(part)

    futures = [threads[(first + number) % len(threads)].submit(run, part) for number, part in enumerate(parts)]
    return [future.result() for future in futures]


def threads_for_single_parts(cores: int, *, large: bool) -> int:
    """Return how many callers of `map_parts` with one part each have a thread of their own."""
    return cores // _cores_each(1, cores, large)


def _cores_each(parts: int, cores: int, large: bool) -> int:
    return max(1, cores // max(parts, 1 if large else 2))


@contextmanager
def one_core() -> Iterator[None]:
    """Let this thread's operations use one core: short ones gain less from other cores than waiting for them costs."""
    cores = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(cores)


@functools.cache
def _threads(count: int, cores: int) -> list[ThreadPoolExecutor]:
    """Start ``count`` threads whose operations use ``cores`` cores each."""
    own = torch.get_num_threads()
    started = threading.Barrier(count + 1)

    def start() -> None:
        torch.get_num_threads()  # at its first use in a thread, PyTorch takes over the number of the process
        torch.set_num_threads(cores)
        started.wait()

    threads = [ThreadPoolExecutor(1, f"part {number}", start) for number in range(count)]
    for thread in threads:
        thread.submit(lambda: None)
    started.wait()
    # The number holds for the thread that sets it, and for those that are started later.
    torch.set_num_threads(own)
    return threads
