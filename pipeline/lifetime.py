"""The start and the end of a command of ours, which PyTorch and MLflow would make seconds longer.

Their imports make millions of objects that stay: Python's garbage collector looks through them again and again for
those that do not, and at the end of the process all of them are taken apart. Neither happens in a command of ours,
``python -m pipeline...``, ``python -m flows...`` or ``pneumoflow``; any other process that imports this package, such
as a notebook or a server of MLflow, is left as it is.
"""

import atexit
import gc
import os
import sys
from pathlib import Path

_PACKAGES, _SCRIPT = ("pipeline", "flows"), "pneumoflow"
_exit_code: int | None = None


def begin() -> None:
    """Let the garbage collector rest while a command of ours is imported; `imported` must follow."""
    if _is_command():
        gc.disable()
        atexit.register(_leave)  # functions that other libraries register later are called earlier


def _is_command() -> bool:
    # While it imports the package of a module, `python -m` has "-m" in the place of the program's name.
    if sys.argv[:1] == ["-m"] and "-m" in sys.orig_argv:
        module = sys.orig_argv[sys.orig_argv.index("-m") + 1]
        return module.split(".")[0] in _PACKAGES
    return Path(sys.argv[0]).name == _SCRIPT if sys.argv else False


def imported() -> None:
    """Let the garbage collector work again; it passes over all objects that there are now."""
    if not gc.isenabled():
        gc.freeze()
        gc.enable()


def ended(exit_code: int) -> None:
    """Note that a command's work is done: it ends after the functions of `atexit`, without taking objects apart."""
    global _exit_code
    _exit_code = exit_code


def _leave() -> None:
    if _exit_code is None:
        return
    try:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
    except (OSError, ValueError):
        return  # Python's own end of a process reports it
    os._exit(_exit_code)
