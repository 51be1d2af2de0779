"""Functions that check whether Prefect's server answers, and that wait for it."""

import logging
import time

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import WorkPoolStatus
from prefect.exceptions import PrefectException
from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings

from pipeline.errors import UserError, run_main
from pipeline.escaping import shortened
from pipeline.redaction import redact

logger = logging.getLogger(__name__)

_TRIES = 3
_REFUSALS = ("HTTP status 401", "HTTP status 403")
_OUTAGE_SECONDS = 3600.0
_POLL_SECONDS = 2.0


def require_server() -> None:
    """Require that the server at ``PREFECT_API_URL`` answers.

    Raises:
        UserError: the server does not answer after a few tries, or refuses this client.
    """
    reason = ""
    for attempt in range(_TRIES):
        if not (reason := _what_is_wrong()):
            return
        if attempt + 1 < _TRIES:
            time.sleep(1)
    if reason in _REFUSALS:
        raise UserError(
            f"PREFECT_API_URL = {PREFECT_API_URL.value()}: the server refuses this client ({reason}); set"
            " PREFECT_API_AUTH_STRING to the server's name:password"
        )
    raise UserError(
        f"PREFECT_API_URL = {PREFECT_API_URL.value()}: no Prefect server answers ({reason}); start it (`make ui` or"
        " `prefect server start`), or unset the variable or the profile's setting to run without a server"
    )


def wait_for_server() -> None:
    """Wait until the server answers, for an hour at most; a run's end can be reported only to a server that answers."""
    deadline = time.monotonic() + _OUTAGE_SECONDS
    warned = False
    while reason := _what_is_wrong():
        if time.monotonic() > deadline:
            return
        if not warned:
            logger.warning(
                "Prefect at %s does not answer (%s); waiting to report this run's state",
                PREFECT_API_URL.value(),
                reason,
            )
            warned = True
        time.sleep(_POLL_SECONDS)


def reachable_server() -> str:
    """Return in words which Prefect server runs report to, and whether a worker waits for them.

    Raises:
        UserError: the server does not answer, or refuses this client.
    """
    url = PREFECT_API_URL.value()
    if not url:
        return "no server is set (PREFECT_API_URL); a flow starts one of its own"
    require_server()
    try:
        with _client() as client:
            pools = client.read_work_pools()
            ready = [pool.name for pool in pools if pool.status is WorkPoolStatus.READY]
    except (httpx.HTTPError, PrefectException) as error:
        raise UserError(f"PREFECT_API_URL = {redact(url)}: {shortened(redact(str(error)))}") from None
    waiting = f"workers wait in {', '.join(ready)}" if ready else "no worker waits in a work pool"
    return f"{redact(url)} answers; {waiting}"


def server_answers() -> bool:
    """Return whether the server answers at once."""
    return not _what_is_wrong()


def _what_is_wrong() -> str:
    try:
        with temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}), _client() as client:
            client.api_version()
    except httpx.HTTPStatusError as error:
        return f"HTTP status {error.response.status_code}"
    except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError, ImportError) as error:
        return shortened(f"{type(error).__name__}: {error}")
    return ""


def _client() -> SyncPrefectClient:
    # A separate client, because the flow's client keeps connections to a server that may be gone.
    return get_client(sync_client=True, httpx_settings={"timeout": 10.0})


def main() -> None:
    """Print which server runs report to, for `pneumoflow doctor`."""
    print(reachable_server(), flush=True)


if __name__ == "__main__":
    run_main(main)
