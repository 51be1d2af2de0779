"""Filters that shorten the errors in Prefect's log."""

import logging
import time

from pipeline.errors import message_for_users
from pipeline.escaping import shortened

# Loggers of Prefect's threads that send logs and events to the server; each logs every batch that fails.
_SHIPPERS = ("prefect._internal.concurrency", "prefect.events.clients", "prefect.events.worker", "EventsWorker")
_QUIET_SECONDS = 600.0


class _OneLineForUsers(logging.Filter):
    """A filter that replaces the traceback of a user's error (a wrong path) by one line; a bug keeps its traceback."""

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        if error and (message := message_for_users(error)):
            record.exc_info, record.msg, record.args = None, "%s", (message,)
        return True


class _OneWarning(logging.Filter):
    """A filter that reduces failures that repeat while a server is away to one line without a traceback."""

    def __init__(self) -> None:
        super().__init__()
        self._quiet_until = 0.0

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno < logging.WARNING or time.monotonic() < self._quiet_until:
            return False
        self._quiet_until = time.monotonic() + _QUIET_SECONDS
        record.exc_info = None
        record.msg, record.args = "Prefect does not take logs or events: %s", (shortened(record.getMessage()),)
        record.levelno, record.levelname = logging.WARNING, "WARNING"
        return True


_ONE_LINE = _OneLineForUsers()
_ONE_WARNING = _OneWarning()


def calm_logs() -> None:
    """Reduce errors that are meant for users, and outages of the server, to one line in the log of flows and tasks."""
    # Otherwise Prefect's log sender writes to stderr for each batch that a server does not accept, and logging does
    # so when the terminal was closed.
    logging.raiseExceptions = False
    logging.getLogger("httpx").setLevel(logging.WARNING)  # one line per request
    for name in ("prefect.flow_runs", "prefect.task_runs"):
        logging.getLogger(name).addFilter(_ONE_LINE)
    for name in _SHIPPERS:
        logging.getLogger(name).addFilter(_ONE_WARNING)
