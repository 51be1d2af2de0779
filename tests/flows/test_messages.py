"""Messages about errors in the log of a flow."""

import logging
import sys

from flows.messages import calm_logs
from pipeline.errors import UserError


def logged(error):
    """Return the record of an error as Prefect logs it, after it has passed the filters of the log."""
    calm_logs()
    logger = logging.getLogger("prefect.flow_runs")
    said = "Encountered exception during execution"
    try:
        raise error
    except type(error):
        record = logger.makeRecord(logger.name, logging.ERROR, __file__, 1, said, (), sys.exc_info())
    assert logger.filter(record)
    return record


def test_an_error_for_users_is_one_line():
    for error, line in (
        (UserError("params.yaml: wrong"), "params.yaml: wrong"),
        (OSError(30, "Read-only file system", "reports/a"), "reports/a: Read-only file system"),
        (OSError(28, "No space left on device"), "No space left on device"),
    ):
        record = logged(error)
        assert (record.getMessage(), record.exc_info) == (line, None)


def test_a_bug_keeps_its_traceback():
    for error in (KeyError("x"), OSError("nothing known")):
        record = logged(error)
        assert (record.getMessage(), record.exc_info[1]) == ("Encountered exception during execution", error)
