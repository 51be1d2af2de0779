"""Limits on the time and memory of reading a study, because its file may be made to take all there is."""

import faulthandler
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2

from pipeline.dicom.radiograph import MAX_PIXELS
from pipeline.errors import BadStudyError

if sys.platform != "win32":
    import resource

# The largest accepted image takes 12 bytes per pixel while it is decoded. 1 GiB is for its file, which is in memory
# more than once, and for the memory that decoders keep.
MEMORY_BYTES = 12 * MAX_PIXELS + 2**30

# Both limits apply to the whole process, so a Dask worker with several threads reads one study at a time.
_ONE_STUDY = threading.Lock()


@contextmanager
def study_limits(seconds: float, memory_bytes: int = MEMORY_BYTES) -> Iterator[None]:
    """Limit the time and memory of the block, which reads one study.

    Args:
        seconds: a block that takes longer ends the process; 0 means no limit.
        memory_bytes: memory that the process may take in addition to what it has now.

    Raises:
        BadStudyError: the study needs more memory. Any other error of the block passes through.
    """
    with _ONE_STUDY, _time_limit(seconds), _memory_limit(memory_bytes):
        try:
            yield
        except (BadStudyError, MemoryError, cv2.error) as error:
            if not _out_of_memory(error):
                raise
            reason = f"needs more than {memory_bytes // 2**20} MiB of memory to read"
            raise BadStudyError(reason) from None


@contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    """End this process if the block takes longer, because a decoder that hangs never returns to Python."""
    if seconds <= 0:
        yield
        return
    with Path(os.devnull).open("w") as nowhere:
        faulthandler.dump_traceback_later(seconds, exit=True, file=nowhere)
        try:
            yield
        finally:
            faulthandler.cancel_dump_traceback_later()


@contextmanager
def _memory_limit(extra_bytes: int) -> Iterator[None]:
    """Limit the process's memory; beyond the limit, Python and C++ raise `MemoryError`, and C gets no memory.

    RLIMIT_DATA counts memory that the process may write to, unlike RLIMIT_AS, which also counts libraries and
    reserved addresses. Only Linux counts this way; elsewhere there is no limit.
    """
    if sys.platform != "linux":
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    bounds = [one for one in (_own_bytes() + extra_bytes, soft, hard) if one != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_DATA, (min(bounds), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def _own_bytes() -> int:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmData:"))


def _out_of_memory(error: BaseException | None) -> bool:
    """Return whether an error, or one that it was raised from, says that there was no memory."""
    while error is not None:
        if isinstance(error, MemoryError) or (isinstance(error, cv2.error) and error.code == cv2.Error.StsNoMem):
            return True
        error = error.__cause__ or error.__context__
    return False
