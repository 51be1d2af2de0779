"""Reading of untrusted files in processes that have a time and a memory limit, and are replaced when they die."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from queue import LifoQueue
from types import TracebackType
from typing import IO, Any, Self

import numpy as np

from pipeline.data.reading_process import READY
from pipeline.dicom.limits import MEMORY_BYTES
from pipeline.dicom.radiograph import Radiograph, read_radiograph
from pipeline.errors import BadStudyError

_AHEAD = 4
_DYING_SECONDS = 5

Outcome = Radiograph | BadStudyError | OSError


def reading_processes() -> int:
    """Return how many processes keep a model busy that uses the same cores: half as many as cores, at most four."""
    return max(1, min(4, (os.cpu_count() or 1) // 2))


class Reader:
    """A few processes that read radiographs; a context manager that any thread may use.

    A study that takes too long, needs too much memory or crashes its decoder ends, at most, its process, which is
    replaced. The processes start at the first read, or with `start`, and none outlives this process. They are
    plain programs: neither a fork of a process with threads nor a second run of the main module, whatever that is.

    Args:
        processes: number of processes.
        study_seconds: a study that takes longer is refused.
        memory_bytes: a study that needs more is refused (on Linux; elsewhere there is no limit).
        decode: turns a file's content into a radiograph; a module-level function that tests may replace.
    """

    def __init__(
        self,
        processes: int,
        study_seconds: float,
        memory_bytes: int = MEMORY_BYTES,
        decode: Callable[[bytes], Radiograph] = read_radiograph,
    ) -> None:
        asked: dict[str, Any] = {"study_seconds": study_seconds, "memory_bytes": memory_bytes, "parent": os.getpid()}
        asked |= {"module": decode.__module__, "function": decode.__qualname__}
        self._all = [_Process(asked) for _ in range(processes)]
        self._free: LifoQueue[_Process] = LifoQueue()
        for process in self._all:
            self._free.put(process)
        self._threads = ThreadPoolExecutor(processes, thread_name_prefix="reader")
        self._ahead = _AHEAD + processes

    def start(self) -> Self:
        """Start the processes now, in the background, rather than at the first read."""
        for process in self._all:
            process.start()
        return self

    def read(self, source: Path | bytes) -> Radiograph:
        """Read a file, or the content of one; wait for a free process.

        Raises:
            BadStudyError: the content is unusable, or it took too long, needed too much memory or crashed the decoder.
            OSError: the file is not there or cannot be opened.
        """
        process = self._free.get()
        try:
            return process.read(source)
        finally:
            self._free.put(process)

    def read_each(self, sources: Iterable[Path | bytes]) -> Iterator[Outcome]:
        """Read in the order of the sources; an error takes the place of its study.

        A few studies are read ahead in the background, so that reading and the work on the images overlap.
        """
        waiting: deque[Future[Outcome]] = deque()
        try:
            for source in sources:
                waiting.append(self._threads.submit(self._outcome, source))
                if len(waiting) >= self._ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()

    def _outcome(self, source: Path | bytes) -> Outcome:
        try:
            return self.read(source)
        except (BadStudyError, OSError) as error:
            return error

    def close(self) -> None:
        """End the processes, whatever they are doing."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        for process in self._all:
            process.close()
        self._threads.shutdown()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Process:
    """One process, which is replaced after it dies; it reads for one thread at a time."""

    def __init__(self, asked: dict[str, Any]) -> None:
        self._asked = asked
        self._running: subprocess.Popen[bytes] | None = None
        self._greeted = self._closed = False
        self._lock = threading.Lock()

    def start(self) -> subprocess.Popen[bytes]:
        """Return the process; start a new one if none is alive."""
        with self._lock:
            if self._closed:
                raise RuntimeError("the reader is closed")
            if self._running is None or self._running.poll() is not None:
                self._running, self._greeted = _launch(self._asked), False
            return self._running

    def read(self, source: Path | bytes) -> Radiograph:
        """See `Reader.read`."""
        running = self._ready()
        late = threading.Event()
        timer = threading.Timer(self._asked["study_seconds"], _kill, (running, late))
        timer.daemon = True
        timer.start()
        try:
            return _exchange(running, source)
        except (EOFError, BrokenPipeError):
            code = _end(running)
            if late.is_set():
                raise BadStudyError(f"took longer than {self._asked['study_seconds']:g} s to read") from None
            raise BadStudyError(f"the decoder crashed ({_name(code)})") from None
        finally:
            timer.cancel()
            timer.join()  # otherwise it could end the process during the next study

    def _ready(self) -> subprocess.Popen[bytes]:
        """Return the process once it reports that it is ready: its start does not count as a study's time."""
        running = self.start()
        if not self._greeted:
            assert running.stdout is not None
            if running.stdout.readline() != READY:
                raise RuntimeError(f"a reading process does not start ({_name(_end(running))})")
            self._greeted = True
        return running

    def close(self) -> None:
        with self._lock:
            self._closed = True
            if self._running is not None:
                self._running.kill()
                _end(self._running)


def _launch(asked: dict[str, Any]) -> subprocess.Popen[bytes]:
    # The same modules as here, wherever they come from; one thread each, because there are several processes.
    path = os.pathsep.join(entry or str(Path.cwd()) for entry in sys.path)
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    return subprocess.Popen(
        # -P: a module in the current folder must not take the place of Python's own.
        [sys.executable, "-P", "-m", "pipeline.data.reading_process", json.dumps(asked)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, **threads, "PYTHONPATH": path},
        start_new_session=True,  # Ctrl+C only reaches this process, which ends the others
    )


def _exchange(running: "subprocess.Popen[bytes]", source: Path | bytes) -> Radiograph:
    assert running.stdin is not None
    assert running.stdout is not None
    content = source if isinstance(source, bytes) else b""
    request = {"bytes": len(content)} if isinstance(source, bytes) else {"path": os.path.abspath(source)}  # noqa: PTH100 - keeps '..' after links
    running.stdin.write(json.dumps(request).encode() + b"\n")
    running.stdin.write(content)
    running.stdin.flush()
    line = running.stdout.readline()
    if not line.endswith(b"\n"):
        raise EOFError
    head = json.loads(line)
    if "bad" in head:
        raise BadStudyError(head["bad"])
    if "errno" in head:
        raise OSError(head["errno"], head["strerror"], str(source) if isinstance(source, Path) else None)
    arrays = {name: _array(running.stdout, *described) for name, described in head["arrays"].items()}
    return Radiograph(**(head["values"] | arrays))


def _array(stream: IO[bytes], kind: str, shape: list[int]) -> np.ndarray:
    array = np.empty(shape, kind)
    if stream.readinto(array.data.cast("B")) != array.nbytes:  # type: ignore[attr-defined]
        raise EOFError
    return array


def _kill(running: "subprocess.Popen[bytes]", late: threading.Event) -> None:
    late.set()
    running.kill()


def _end(running: "subprocess.Popen[bytes]") -> int:
    try:
        code = running.wait(_DYING_SECONDS)  # a process that crashes closes its pipes before it has an exit code
    except subprocess.TimeoutExpired:
        running.kill()
        code = running.wait()
    for stream in (running.stdin, running.stdout):
        assert stream is not None
        with contextlib.suppress(OSError):  # close() may fail to send the remaining data
            stream.close()
    return code


def _name(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"
