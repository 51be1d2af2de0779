"""A lease that allows one change of the champion at a time, whichever machine it comes from.

MLflow has no lock. A process that wants to make a change writes its own mark into a tag, waits, and reads the tag again
(Fischer's algorithm): if it finds its own mark there, it is alone, because the others wait until the tag is gone.
"""

import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from uuid import uuid4

from pipeline.errors import UserError
from pipeline.tracking.asking import tell
from pipeline.tracking.place import shown_uri
from pipeline.tracking.store import open_client
from pipeline.tracking.versions import MODEL_NAME, read_model

logger = logging.getLogger(__name__)

_LEASE = "pneumoflow.promotion"
SETTLING = "PNEUMOFLOW_LEASE_SECONDS"
# Longer than the time from reading an empty tag to having written it.
_SETTLING_SECONDS = 1.0
# A mark that stays for this long belongs to a process that was killed.
_DEAD_SECONDS = 30.0
_PAUSE_SECONDS = 0.3


class Lease:
    """The right to change the champion, for as long as the tag has this mark."""

    def __init__(self, mark: str) -> None:
        self._mark = mark

    def held(self) -> bool:
        """Return whether the tag still has the mark."""
        return _mark() == self._mark

    def require(self) -> None:
        """Refuse to go on without the lease.

        Raises:
            UserError: another process has taken the lease over; nothing was changed.
        """
        if not self.held():
            raise UserError(f"{shown_uri()}: another promotion took over, this one took too long; nothing was changed")


@contextmanager
def promotion_lease() -> Iterator[Lease]:
    """Wait for the lease, and hold it inside the block.

    Raises:
        UserError: there is no registered model, the store cannot be queried, or others hold the lease for too long.
    """
    if read_model() is None:
        raise UserError(f"{shown_uri()}: has no registered model {MODEL_NAME}; run `dvc repro evaluate` first")
    lease = _acquire(uuid4().hex)
    try:
        yield lease
    finally:
        _release(lease)


def _acquire(mark: str) -> Lease:
    settling = float(os.environ.get(SETTLING) or _SETTLING_SECONDS)
    client, lease = open_client(), Lease(mark)
    seen, since = "", time.monotonic()
    end = since + 3 * _DEAD_SECONDS
    while time.monotonic() < end:
        other = _mark()
        if other != seen:
            seen, since = other, time.monotonic()
        if other and time.monotonic() - since < _DEAD_SECONDS:
            time.sleep(_PAUSE_SECONDS)
            continue
        tell("announcing a promotion", lambda: client.set_registered_model_tag(MODEL_NAME, _LEASE, mark))
        time.sleep(settling)
        if lease.held():
            return lease
    raise UserError(
        f"{shown_uri()}: other promotions have been at work for {3 * _DEAD_SECONDS:g} seconds; try again later"
    )


def _release(lease: Lease) -> None:
    try:
        if lease.held():
            tell("ending a promotion", lambda: open_client().delete_registered_model_tag(MODEL_NAME, _LEASE))
    except UserError as error:
        logger.warning("the next promotion waits for %g seconds: %s", _DEAD_SECONDS, error)


def _mark() -> str:
    model = read_model()
    return str(model.tags.get(_LEASE, "")) if model else ""
