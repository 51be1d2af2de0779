"""Memory allocation by the C library while a network runs on a CPU."""

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4  # glibc's malloc.h
_HEAP_BYTES = 64 * 2**20  # of each of the heaps from which glibc serves threads other than the main one


def keep_freed_memory() -> bool:
    """Let glibc keep freed memory for the next batch; return False if the C library is another one.

    By default glibc gives each freed block of 32 MiB and more back to the system, and each batch pays again for all
    pages of its large features: a tenth of the time of a training step, and more than half of that of inference.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    # Other threads have several heaps, which have no threshold: an empty one is kept only if the one before it has no
    # room for the padding.
    return bool(mallopt(_M_MMAP_MAX, 0) and mallopt(_M_TRIM_THRESHOLD, -1) and mallopt(_M_TOP_PAD, _HEAP_BYTES))
