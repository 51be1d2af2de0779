"""The champion, its predecessors, and changes of champion: one at a time, whichever process makes them.

The alias names the champion, and a tag of the registered model lists the champions so far. The alias is written
first: a list that does not end with the alias's version, after a kill or a change by hand, is corrected when read.
"""

import json
import logging
from datetime import UTC, datetime

from mlflow.entities.model_registry import RegisteredModel

from pipeline.errors import UserError
from pipeline.redaction import redact
from pipeline.tracking.asking import tell
from pipeline.tracking.lease import Lease, promotion_lease
from pipeline.tracking.pages import with_champions, with_decision
from pipeline.tracking.place import shown_uri
from pipeline.tracking.store import open_client
from pipeline.tracking.versions import CHAMPION, MODEL_NAME, Registered, read_model, read_version

logger = logging.getLogger(__name__)

_HISTORY = "champions"
# MLflow takes tags of at most 5,000 characters.
_TAG_LENGTH, _WHY_LENGTH, _REASONS_LENGTH = 5000, 150, 1000


class ChampionGoneError(UserError):
    """There was a champion, but its version no longer exists or has lost the alias."""


class ChampionChangedError(RuntimeError):
    """The champion has changed in the meantime, by another process or by hand."""


def registered_champion() -> Registered | None:
    """Return the champion; None if there has never been one.

    Raises:
        ChampionGoneError: there was one, but it is gone.
        UserError: the store cannot be queried.
    """
    model = read_model()
    number = _alias(model)
    if number is None:
        former = _history(model)
        if former:
            raise _gone(former[-1]["version"])
        return None
    version = read_version(number)
    if version is None:
        raise _gone(number)
    return version


def _gone(number: str) -> ChampionGoneError:
    return ChampionGoneError(
        f"{shown_uri()}: version {number} of {MODEL_NAME} was the champion, but it was deleted or has lost the alias;"
        " `pneumoflow promote --rollback` makes the champion before it the champion again,"
        " `pneumoflow promote --force REASON` the newest model"
    )


def make_champion(chosen: Registered, why: str, former: Registered | None) -> None:
    """Give a version the alias `CHAMPION` in the place of ``former``, and note why.

    Raises:
        ChampionChangedError: ``former`` is not the champion; nothing was changed.
        UserError: the store cannot be queried.
    """
    now = datetime.now(UTC).isoformat(timespec="seconds")
    with promotion_lease() as lease:
        model = read_model()
        number = _alias(model)
        if number != (former.version if former else None):
            raise ChampionChangedError(f"version {number} is the champion")
        if read_version(chosen.version) != chosen:
            raise UserError(f"{shown_uri()}: version {chosen.version} of {MODEL_NAME} was deleted; nothing was changed")
        entry = {"version": chosen.version, "at": now, "why": redact(why)[:_WHY_LENGTH]}
        _set_champions(lease, [*_history(model), entry])
    note_decision(chosen.version, why, promoted=True)


def note_decision(version: str, why: str, *, promoted: bool) -> None:
    """Write a decision and its reasons on a version's page.

    Raises:
        UserError: the store does not accept it.
    """
    client, what = open_client(), f"writing on version {version}"
    decision = "promoted" if promoted else "not promoted"
    tell(what, lambda: client.set_model_version_tag(MODEL_NAME, version, "promotion", decision))
    reasons = redact(why)[:_REASONS_LENGTH]
    tell(what, lambda: client.set_model_version_tag(MODEL_NAME, version, "promotion_reasons", reasons))

    def describe() -> None:
        former = client.get_model_version(MODEL_NAME, version).description or ""
        client.update_model_version(MODEL_NAME, version, with_decision(former, decision, reasons))

    tell(what, describe)


def roll_back() -> tuple[str, str]:
    """Make the champion before this one the champion again; return both versions, the replaced one first.

    Versions that were deleted are passed over.

    Raises:
        UserError: there is none before it, or the store cannot be queried.
    """
    with promotion_lease() as lease:
        champions = _history(read_model())
        earlier = champions[:-1]
        while earlier and read_version(earlier[-1]["version"]) is None:
            logger.warning("version %s was deleted, and is skipped", earlier.pop()["version"])
        if not earlier:
            raise UserError(
                f"{shown_uri()}: {MODEL_NAME} has had {len(champions)} champions; there is none to go back to"
            )
        _set_champions(lease, earlier)
    dropped, back = champions[-1]["version"], earlier[-1]["version"]
    if read_version(dropped) is not None:
        note_decision(dropped, f"rolled back to version {back}", promoted=False)
    return dropped, back


def _alias(model: RegisteredModel | None) -> str | None:
    number = model.aliases.get(CHAMPION) if model else None
    return None if number is None else str(number)


def _history(model: RegisteredModel | None) -> list[dict[str, str]]:
    """Return the champions so far: ``version``, ``at`` and ``why``, the present one last."""
    text = (model.tags if model else {}).get(_HISTORY, "[]")
    try:
        champions = [{key: str(one[key]) for key in ("version", "at", "why")} for one in json.loads(text)]
    except (ValueError, KeyError, TypeError):
        raise UserError(
            f"{shown_uri()}: tag {_HISTORY} of {MODEL_NAME} = {text[:80]!r}: must be a JSON list of champions"
        ) from None
    number = _alias(model)
    if number is None:
        return champions
    while champions and champions[-1]["version"] != number and any(one["version"] == number for one in champions):
        champions.pop()
    if not champions or champions[-1]["version"] != number:
        champions.append({"version": number, "at": "", "why": "set by hand"})
    return champions


def _set_champions(lease: Lease, champions: list[dict[str, str]]) -> None:
    client, number = open_client(), champions[-1]["version"]
    while len(text := json.dumps(champions, ensure_ascii=False)) > _TAG_LENGTH:
        champions = champions[1:]
    lease.require()
    tell("writing the champion", lambda: client.set_registered_model_alias(MODEL_NAME, CHAMPION, number))
    tell("writing the champions", lambda: client.set_registered_model_tag(MODEL_NAME, _HISTORY, text))

    def describe() -> None:
        about = client.get_registered_model(MODEL_NAME).description or ""
        client.update_registered_model(MODEL_NAME, with_champions(about, champions))

    tell("writing the table of champions", describe)
