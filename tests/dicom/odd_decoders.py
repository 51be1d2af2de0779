"""A decoder that misbehaves as real ones do; a file's first byte selects how. It runs in the reader's processes.

A file may go on with a path: an empty file appears there when a decoder begins to hang.
"""

import ctypes
import os
import signal
import time
from pathlib import Path

import numpy as np

from pipeline.dicom.radiograph import read_radiograph
from pipeline.errors import BadStudyError

SLOW, HUNGRY, CRASHING, REFUSED, HUNG_IN_C = b"s", b"h", b"c", b"r", b"l"


def decode(content):
    kind = content[:1]
    if kind in (SLOW, HUNG_IN_C) and content[1:]:
        Path(content[1:].decode()).touch()
    if kind == SLOW:
        time.sleep(600)
    if kind == HUNGRY:
        return [np.ones(2**20) for _ in range(10_000)]
    if kind == CRASHING:
        os.kill(os.getpid(), signal.SIGSEGV)
    if kind == REFUSED:
        raise BadStudyError("no radiograph")
    if kind == HUNG_IN_C:
        ctypes.PyDLL(None).sleep(600)  # holds the interpreter's lock
    return read_radiograph(content)
