"""Requests to MLflow; a failure must not be mistaken for an answer."""

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
from pipeline.escaping import shortened
from pipeline.redaction import redact
from pipeline.tracking.place import shown_uri

# All errors that a store, the way to it or a broken answer raises. ImportError: the driver of a database is missing.
FAILURES = (
    MlflowException, OSError, SQLAlchemyError, CommandError, ParseError, ImportError, KeyError, ValueError,
    TypeError,
)  # fmt: skip
PATIENCE = "PNEUMOFLOW_PATIENCE"
_PATIENCE_SECONDS = 20.0
_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.5, 5.0
_REFUSED = {"PERMISSION_DENIED", "CUSTOMER_UNAUTHORIZED", "UNAUTHENTICATED"}
FINAL = ("INVALID_PARAMETER_VALUE", "BAD_REQUEST")
# MLflow puts the address, which is in the message already, before the reason.
_PREAMBLE = re.compile(r"^API request to \S+ failed with (timeout )?exception (HTTPS?ConnectionPool\(.*?\(Caused by )?")
_SHOWN = 400  # characters: the advice of MLflow on an old database is this long
Answer = TypeVar("Answer")


class MissingError(LookupError):
    """The store says that the requested object does not exist."""


class BrokenAnswerError(OSError):
    """An answer that arrived, but does not match the request."""


def ask(what: str, call: Callable[[], Answer]) -> Answer:
    """Make a request, and repeat it for some seconds if it fails.

    Args:
        what: names the request in the error.
        call: makes the request; it may be made twice, although the first one has arrived.

    Raises:
        MissingError: the store answered that there is no such object.
        UserError: the store refused the request for good, or it failed for ``PNEUMOFLOW_PATIENCE`` seconds (20).
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
    """Make a request about an object that must exist, as `ask` does.

    Raises:
        UserError: the request failed, or its object no longer exists.
    """
    try:
        return ask(what, call)
    except MissingError as error:
        raise UserError(f"MLFLOW_TRACKING_URI = {shown_uri()}: {what}: {error}") from None


def patience() -> float:
    """Return for how many seconds a failing request is repeated."""
    text = os.environ.get(PATIENCE, "")
    try:
        return float(text or _PATIENCE_SECONDS)
    except ValueError:
        raise UserError(f"{PATIENCE} = {text!r}: must be a number of seconds") from None


def is_missing(error: BaseException) -> bool:
    """Return whether the store says that there is no such object. No other error means that."""
    return isinstance(error, MlflowException) and error.error_code == "RESOURCE_DOES_NOT_EXIST"


def _is_final(error: BaseException) -> bool:
    """Return whether the store has understood the request and will not accept it from this caller."""
    return isinstance(error, MlflowException) and error.error_code in {*FINAL, *_REFUSED}


def reason(error: BaseException) -> str:
    """Return an error as one short line without passwords."""
    words = _PREAMBLE.sub("", " ".join(str(error).split()))
    text = shortened(redact(words), _SHOWN) or type(error).__name__
    if isinstance(error, MlflowException) and error.error_code in _REFUSED:
        return f"access is refused: {text}"
    return text
