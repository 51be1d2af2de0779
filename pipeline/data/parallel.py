"""Parallel jobs: one function runs over many jobs in processes that may die, on this machine or on a Dask cluster."""

import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, TypeVar

import cv2
from pebble import ProcessExpired, ProcessPool

from pipeline.errors import UserError
from pipeline.progress import with_progress

_JOIN_SECONDS = 60.0
Job = TypeVar("Job")
Result = TypeVar("Result")
Submit = Callable[[Callable[[Any], Any], Any], "Future[Any]"]


@dataclass(frozen=True)
class Workers:
    """The place where jobs run.

    Attributes:
        count: processes on this machine; 0 means one per core.
        scheduler: address of a Dask scheduler whose workers see the same files; empty: this machine.
    """

    count: int = 0
    scheduler: str = ""


def map_jobs(
    function: Callable[[Job], Result], jobs: Sequence[Job], workers: Workers, description: str
) -> list[Result | None]:
    """Apply ``function`` to every job; return the results in the order of the jobs.

    ``function`` and the jobs must be picklable. A job whose process died (a decoder crashed, or the
    system ended it) gives None; the process is replaced, and other jobs are not affected. The first
    exception of a job stops the rest.

    Raises:
        UserError: the Dask cluster cannot be used.
    """
    with _dask(workers.scheduler) if workers.scheduler else _processes(workers.count, len(jobs)) as submit:
        futures = [submit(function, job) for job in jobs]
        return [_result(future) for future in with_progress(futures, description)]


def _result(future: "Future[Result]") -> Result | None:
    error = future.exception()
    if error is None:
        return future.result()
    # Compare the name of distributed's exception, so that the optional package need not be imported.
    if isinstance(error, ProcessExpired) or type(error).__name__ == "KilledWorker":
        return None
    raise error


@contextmanager
def _processes(count: int, jobs: int) -> Iterator[Submit]:
    pool = ProcessPool(min(count or os.cpu_count() or 1, max(jobs, 1)), initializer=_start_worker, context=_context())
    try:
        yield lambda function, job: pool.schedule(function, args=[job])
    except BaseException:
        pool.stop()
        raise
    else:
        pool.close()
    finally:
        pool.join()


def _context() -> Any:
    # Not fork: a child would inherit OpenCV's and the logger's locks in any state.
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    # These modules are imported once, not by every worker.
    context.set_forkserver_preload(["pipeline.data.shards", "pipeline.sources.sample"])
    return context


def _start_worker() -> None:
    cv2.setNumThreads(1)
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()


def _end_with(sentinel: int) -> None:
    """End this worker with the main process: a killed one must not leave workers behind, busy or waiting."""
    wait([sentinel])
    os._exit(1)


def require_shared(workers: Workers, folders: Sequence[Path]) -> None:
    """Require that every worker of the Dask cluster sees these folders, given by absolute paths.

    Raises:
        UserError: a worker does not, there is no worker, or the cluster cannot be used.
    """
    if not workers.scheduler:
        return
    with _client(workers.scheduler) as client:
        unseen_by_worker = _run_on_all(client, _unseen, [str(folder) for folder in folders])
    if not unseen_by_worker:
        raise UserError(
            f"preprocess.scheduler = {workers.scheduler!r}: no worker has joined within {_JOIN_SECONDS:g} seconds"
        )
    for worker, unseen in sorted(unseen_by_worker.items()):
        if unseen:
            raise UserError(
                f"preprocess.scheduler = {workers.scheduler!r}: worker {worker} has no folder {unseen[0]}; all"
                " workers need this project's files at the same paths, on a shared file system"
            )


def _run_on_all(client: Any, function: Callable[[Any], Result], argument: Any) -> dict[str, Result]:
    """Run ``function(argument)`` on every worker; return results by worker, none if no worker joins in time."""
    deadline = time.monotonic() + _JOIN_SECONDS
    while (left := deadline - time.monotonic()) > 0:
        try:
            client.wait_for_workers(1, timeout=left)
            results: dict[str, Result] = client.run(function, argument)
        except OSError:  # the time is over, or a worker was lost before it answered
            results = {}
        # The scheduler counts a lost worker until its connection ends; then nobody answers.
        if results:
            return results
        time.sleep(0.1)
    return {}


def _unseen(folders: list[str]) -> list[str]:
    # Not Path.is_dir: it raises PermissionError below a folder that this user may not enter.
    return [folder for folder in folders if not os.path.isdir(folder)]  # noqa: PTH112


def _client(address: str) -> Any:
    try:
        from distributed import Client
    except ImportError:
        raise UserError("preprocess.executor = 'dask': needs pip install -c constraints.txt -e '.[dask]'") from None
    try:
        return Client(address, timeout="5s", set_as_default=False)
    except (OSError, ValueError) as error:  # a refused or timed-out connection, a malformed address
        raise UserError(
            f"preprocess.scheduler = {address!r}: no Dask scheduler answers there ({type(error).__name__})"
        ) from None


@contextmanager
def _dask(address: str) -> Iterator[Submit]:
    with _client(address) as client:
        executor = client.get_executor(pure=False)
        try:
            yield executor.submit
        except BaseException:
            executor.shutdown(wait=False, cancel_futures=True)
            raise
