"""What Prefect's log says of errors."""

import logging
import time

from pipeline.errors import message_for_users

# Prefect's own threads tell the server of logs and events; each says so for every batch that fails.
_SHIPPERS = ("prefect._internal.concurrency", "prefect.events.clients", "prefect.events.worker", "EventsWorker")
_QUIET_SECONDS = 600.0


class _OneLineForUsers(logging.Filter):
    """A traceback says nothing to a user who gave a wrong path; a bug keeps its own."""

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        if error and (message := message_for_users(error)):
            record.exc_info, record.msg, record.args = None, "%s", (message,)
        return True


class _OneWarning(logging.Filter):
    """Of what fails again and again while a server is away, one line without a traceback."""

    def __init__(self) -> None:
        super().__init__()
        self._quiet_until = 0.0

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno < logging.WARNING or time.monotonic() < self._quiet_until:
            return False
        self._quiet_until = time.monotonic() + _QUIET_SECONDS
        record.exc_info = None
        record.msg, record.args = "Prefect does not take logs or events: %s", (record.getMessage()[:200],)
        record.levelno, record.levelname = logging.WARNING, "WARNING"
        return True


_ONE_LINE = _OneLineForUsers()
_ONE_WARNING = _OneWarning()


def calm_logs() -> None:
    """Errors that are meant for users are one line in the log of flows and tasks; so is an outage of the server."""
    # Prefect's shipper of logs says so on stderr for each batch that a server does not take, unless told not to; so
    # does a terminal that was closed.
    logging.raiseExceptions = False
    logging.getLogger("httpx").setLevel(logging.WARNING)  # one line per request
    for name in ("prefect.flow_runs", "prefect.task_runs"):
        logging.getLogger(name).addFilter(_ONE_LINE)
    for name in _SHIPPERS:
        logging.getLogger(name).addFilter(_ONE_WARNING)
