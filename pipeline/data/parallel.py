"""Run one function over many jobs on all cores, with a progress bar."""

import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import cv2
from rich.console import Console
from rich.progress import track

Job = TypeVar("Job")
Result = TypeVar("Result")


def map_parallel(
    function: Callable[[Job], Result], jobs: Sequence[Job], workers: int, description: str
) -> list[Result]:
    """Apply ``function`` to every job, in order; ``workers`` 0 means one process per core.

    ``function`` and the jobs must be picklable. The first exception of a job stops the rest.
    """
    with _pool(min(workers or os.cpu_count() or 1, len(jobs) or 1)) as pool:
        results = pool.map(function, jobs) if pool else map(function, jobs)
        return list(_progress(results, len(jobs), description))


def _progress(results: Iterable[Result], total: int, description: str) -> Iterator[Result]:
    console = Console(stderr=True)
    # Without a terminal the bar would end up in a log as one useless line of escape codes.
    return iter(track(results, description, total, console=console, disable=not console.is_terminal))


@contextmanager
def _pool(workers: int) -> Iterator[Executor | None]:
    if workers == 1:
        yield None
        return
    # spawn: a forked child inherits OpenCV's and the logger's locks in whatever state they are.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_one_thread)
    try:
        yield pool
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    pool.shutdown()


def _one_thread() -> None:
    cv2.setNumThreads(1)
