"""Requests to MLflow whose failure must not be taken for an answer."""

import os
import re
import time
from collections.abc import Callable
from typing import TypeVar

from alembic.util import CommandError
from google.protobuf.json_format import ParseError  # type: ignore[import-untyped]
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import SQLAlchemyError

from pipeline.errors import UserError
from pipeline.redaction import redact
from pipeline.tracking.place import shown_uri

# Everything that a store, the way to it or a broken answer raises. ImportError: the driver of a database is missing.
FAILURES = (
    MlflowException, OSError, SQLAlchemyError, CommandError, ParseError, ImportError, KeyError, ValueError,
    TypeError,
)  # fmt: skip
PATIENCE = "PNEUMOFLOW_MLFLOW_PATIENCE"
_PATIENCE_SECONDS = 20.0
_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.5, 5.0
_REFUSED = {"PERMISSION_DENIED", "CUSTOMER_UNAUTHORIZED", "UNAUTHENTICATED"}
FINAL = ("INVALID_PARAMETER_VALUE", "BAD_REQUEST")
# MLflow names the address, which is in the message already, before the reason.
_PREAMBLE = re.compile(r"^API request to \S+ failed with (timeout )?exception (HTTPS?ConnectionPool\(.*?\(Caused by )?")
_SHOWN = 200
Answer = TypeVar("Answer")


class MissingError(LookupError):
    """The store says that it does not have what was asked for."""


class BrokenAnswerError(OSError):
    """An answer that arrived, but is not of what was asked for."""


def ask(what: str, call: Callable[[], Answer]) -> Answer:
    """Make a request, again for some seconds if it fails.

    Args:
        what: names the request in the error.
        call: makes the request; it may be made twice, though the first one has arrived.

    Raises:
        MissingError: the store answered that there is no such thing.
        UserError: it failed in any other way, for as long as ``PNEUMOFLOW_MLFLOW_PATIENCE`` seconds (20).
    """
    deadline, pause = time.monotonic() + patience(), _PAUSE_SECONDS
    while True:
        try:
            return call()
        except UserError:
            raise
        except FAILURES as error:
            if is_missing(error):
                raise MissingError(reason(error)) from None
            if _is_final(error) or time.monotonic() + pause > deadline:
                raise UserError(f"MLFLOW_TRACKING_URI = {shown_uri()}: {what}: {reason(error)}") from None
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)


def tell(what: str, call: Callable[[], Answer]) -> Answer:
    """Make a request for something that must be there, as `ask` does.

    Raises:
        UserError: it failed, or what it is about has gone.
    """
    try:
        return ask(what, call)
    except MissingError as error:
        raise UserError(f"MLFLOW_TRACKING_URI = {shown_uri()}: {what}: {error}") from None


def patience() -> float:
    """For how many seconds a request is made again."""
    text = os.environ.get(PATIENCE, "")
    try:
        return float(text or _PATIENCE_SECONDS)
    except ValueError:
        raise UserError(f"{PATIENCE} = {text!r}: must be a number of seconds") from None


def is_missing(error: BaseException) -> bool:
    """Whether the store says that there is no such thing. No other error means that."""
    return isinstance(error, MlflowException) and error.error_code == "RESOURCE_DOES_NOT_EXIST"


def _is_final(error: BaseException) -> bool:
    """Whether the store has understood the request and will never take it."""
    return isinstance(error, MlflowException) and error.error_code in FINAL


def reason(error: BaseException) -> str:
    """An error as one short line without passwords."""
    words = _PREAMBLE.sub("", " ".join(str(error).split()))
    text = redact(words)[:_SHOWN] or type(error).__name__
    if isinstance(error, MlflowException) and error.error_code in _REFUSED:
        return f"access is refused: {text}"
    return text
