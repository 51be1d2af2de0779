"""The program of `Reader`'s processes: it reads hostile files one after another, and any of them may crash it.

A request is a line of JSON: ``{"path": ...}``, or ``{"bytes": n}`` and then n bytes. The answer is a line of JSON,
and then the arrays' bytes in the order in which that line names them. Nothing is pickled.
"""

import dataclasses
import errno
import importlib
import json
import os
import signal
import stat
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import cv2
import numpy as np

from pipeline import lifetime
from pipeline.dicom.limits import study_limits
from pipeline.dicom.radiograph import MAX_FILE_BYTES, Radiograph
from pipeline.errors import BadStudyError

READY = b"ready\n"
# The parent ends a process that takes too long. If the parent is gone, the process ends itself, a bit later.
_GRACE_SECONDS = 5.0


def serve(requests: BinaryIO, answers: BinaryIO, decode: Callable[[bytes], Radiograph], limits: dict[str, Any]) -> None:
    """Answer requests until there are no more; ``limits`` holds ``study_seconds`` and ``memory_bytes``."""
    answers.write(READY)
    answers.flush()
    while line := requests.readline():
        head, arrays = _answer(json.loads(line), requests, decode, limits)
        answers.write(json.dumps(head).encode() + b"\n")
        for array in arrays:
            answers.write(np.ascontiguousarray(array).data)
        answers.flush()


def _answer(
    request: dict[str, Any], requests: BinaryIO, decode: Callable[[bytes], Radiograph], limits: dict[str, Any]
) -> tuple[dict[str, Any], list[np.ndarray]]:
    try:
        with study_limits(limits["study_seconds"] + _GRACE_SECONDS, limits["memory_bytes"]):
            content = requests.read(request["bytes"]) if "bytes" in request else _content(Path(request["path"]))
            return _packed(decode(content))
    except OSError as error:
        return {"errno": error.errno or errno.EIO, "strerror": error.strerror or str(error)}, []
    except BadStudyError as error:
        return {"bad": str(error)}, []


def _content(path: Path) -> bytes:
    """Return a file's bytes; for a file that is too large, one byte more than is accepted."""
    # Without O_NONBLOCK, opening a FIFO would wait for its other end.
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "not a regular file")
        return file.read(min(status.st_size, MAX_FILE_BYTES) + 1)  # read() takes as much memory as it is asked for


def _packed(radiograph: Radiograph) -> tuple[dict[str, Any], list[np.ndarray]]:
    fields = {one.name: getattr(radiograph, one.name) for one in dataclasses.fields(radiograph)}
    arrays = {name: value for name, value in fields.items() if isinstance(value, np.ndarray)}
    values = {name: value for name, value in fields.items() if name not in arrays}
    described = {name: (array.dtype.str, array.shape) for name, array in arrays.items()}
    return {"arrays": described, "values": values}, list(arrays.values())


def _end_with_parent(parent: int) -> None:
    """End a busy process when its parent is gone; an idle one ends at the end of the requests."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def main() -> None:
    """Answer requests from standard input on standard output; the argument is JSON."""
    lifetime.imported()
    asked = json.loads(sys.argv[1])
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, args=(asked["parent"],), daemon=True).start()
    cv2.setNumThreads(1)
    decode = getattr(importlib.import_module(asked["module"]), asked["function"])
    # Decoders in C print to file descriptors 1 and 2: their text would end up among the answers, or on a terminal.
    answers = os.fdopen(os.dup(1), "wb")
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    serve(sys.stdin.buffer, answers, decode, asked)


if __name__ == "__main__":
    main()
