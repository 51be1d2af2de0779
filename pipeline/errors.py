"""The one error type that a user is meant to read, and the functions that end a process on it."""

import logging
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import NoReturn

from pipeline import lifetime
from pipeline.ranks import forget_stray_ranks, rank
from pipeline.redaction import redact


class UserError(ValueError):
    """Bad input: the message is one line that names the place, the value and the rule."""


class BadStudyError(ValueError):
    """One study that cannot be used; the message is the reason, and holds no data of the patient."""


def fail(message: str) -> NoReturn:
    """Print one line to stderr and end the process with exit code 1.

    In a run of several processes, the first reports for all; the others' lines begin with their process number.
    """
    # A file's name may hold characters that control a terminal.
    shown = "".join(one if one.isprintable() else ascii(one)[1:-1] for one in redact(message))
    print(f"{f'process {rank()}' if rank() else 'error'}: {shown}", file=sys.stderr, flush=True)
    raise SystemExit(1)


def message_for_users(error: BaseException) -> str:
    """Return the one line that tells a user about bad input or a refused file; an empty string for a bug."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, OSError) and (error.filename is not None or error.strerror is not None):
        return f"{'' if error.filename is None else f'{error.filename}: '}{error.strerror or error}"
    return ""


class Killed(BaseException):
    """A request that the process end (SIGTERM); not an `Exception`, so that nothing swallows it."""


def run_main(main: Callable[[], None]) -> None:
    """Run a process's ``main``; bad input, a refused file or a signal ends it with one line, not a traceback.

    The process then ends at once; see `pipeline.lifetime`.
    """
    lifetime.imported()
    try:
        _run(main)
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            lifetime.ended(end.code or 0)
        raise
    lifetime.ended(0)


def _run(main: Callable[[], None]) -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    hide_passwords()
    forget_stray_ranks()
    try:
        main()
    except (Killed, KeyboardInterrupt):
        with suppress(OSError):  # the terminal was closed
            print("stopped by a signal", file=sys.stderr, flush=True)
        raise SystemExit(130) from None
    except (UserError, OSError) as error:
        if not (message := message_for_users(error)):
            raise
        fail(message)


def hide_passwords() -> None:
    """Hide passwords in all further log records and tracebacks of this process."""
    logging.setLogRecordFactory(_RedactedRecord)
    sys.excepthook = _print_redacted


class _RedactedRecord(logging.LogRecord):
    """A log record, of any library, whose message is redacted."""

    def getMessage(self) -> str:  # noqa: N802 - logging's name
        return redact(super().getMessage())


def _print_redacted(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    lines = traceback.format_exception(kind, error, trace)
    print(redact("".join(lines)), file=sys.stderr, end="", flush=True)
