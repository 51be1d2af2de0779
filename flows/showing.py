"""Artifacts and events: they show a run's progress and results, and never end or delay the run."""

import logging
import time
from collections.abc import Callable
from typing import TypeVar

import httpx
from prefect.exceptions import PrefectException
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings

from pipeline.escaping import shortened

logger = logging.getLogger(__name__)

Result = TypeVar("Result")
_PAUSE_SECONDS = 30.0
_quiet_until = 0.0


def show(call: Callable[[], Result]) -> Result | None:
    """Call a function that reports to Prefect's server; return None if it fails, with one warning per outage."""
    global _quiet_until
    if time.monotonic() < _quiet_until:
        return None
    try:
        with temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}):
            result = call()
    except (httpx.HTTPError, OSError, PrefectException) as error:
        if not _quiet_until:
            reason = shortened(str(error))
            logger.warning(
                "Prefect does not accept this run's progress and artifacts (%s: %s)", type(error).__name__, reason
            )
        # Each attempt may take as long as a request's time-out.
        _quiet_until = time.monotonic() + _PAUSE_SECONDS
        return None
    _quiet_until = 0.0
    return result
