"""What Prefect's log says of errors."""

import logging

from pipeline.errors import UserError


class _OneLineForUsers(logging.Filter):
    """A traceback says nothing to who gave a wrong path; a bug keeps its own."""

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, UserError):
            record.exc_info, record.msg, record.args = None, "%s", (str(error),)
        return True


_ONE_LINE = _OneLineForUsers()


def one_line_errors() -> None:
    """Errors that are meant for users are one line in the log of flows and tasks."""
    for name in ("prefect.flow_runs", "prefect.task_runs"):
        logging.getLogger(name).addFilter(_ONE_LINE)
