"""What the log of a flow says of errors."""

import logging

import pytest

from flows.messages import calm_logs
from pipeline.errors import UserError


@pytest.fixture
def log(caplog):
    """Log an error the way Prefect does; the record that arrives."""
    calm_logs()
    logger = logging.getLogger("prefect.flow_runs")
    logger.addHandler(caplog.handler)

    def call(error):
        try:
            raise error
        except type(error):
            logger.exception("Encountered exception during execution")
        return caplog.records[-1]

    yield call
    logger.removeHandler(caplog.handler)


def test_an_error_for_users_is_one_line(log):
    for error, line in (
        (UserError("params.yaml: wrong"), "params.yaml: wrong"),
        (OSError(30, "Read-only file system", "reports/a"), "reports/a: Read-only file system"),
        (OSError(28, "No space left on device"), "No space left on device"),
    ):
        record = log(error)
        assert (record.getMessage(), record.exc_info) == (line, None)


def test_a_bug_keeps_its_traceback(log):
    for error in (KeyError("x"), OSError("nothing known")):
        record = log(error)
        assert (record.getMessage(), record.exc_info[1]) == ("Encountered exception during execution", error)
