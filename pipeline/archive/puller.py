"""Images fetched from an archive by DICOMweb: QIDO-RS says what is new, WADO-RS brings it."""

import logging
import re
from collections.abc import Iterator
from datetime import date, timedelta
from functools import partial
from typing import Any

import requests
from dicomweb_client.api import DICOMwebClient

from pipeline.archive.dicomweb import dicomweb, fetch
from pipeline.archive.receiver import OUT_OF_RESOURCES, STORAGE_CLASSES, STORED, Receiver
from pipeline.escaping import one_line
from pipeline.redaction import redact

logger = logging.getLogger(__name__)

_MODALITIES = ("CR", "DX")
_UID = re.compile(r"[0-9.]{1,64}")
_STUDY, _SERIES, _INSTANCE, _CLASS = "0020000D", "0020000E", "00080018", "00080016"


def pull(receiver: Receiver, address: str, days: int, today: date) -> int:
    """Store the images of the last ``days`` days that are not stored yet; return how many came.

    If the archive is away, or does not give an image, a line says so, and the next call tries again.

    Args:
        receiver: stores the images.
        address: of the DICOMweb service.
        days: studies of so many days are asked for, today's and earlier ones.
        today: the last of these days.
    """
    came, place = 0, redact(address)
    try:
        with dicomweb(address) as (client, session):
            for study, series, instance in _images(client, days, today):
                if receiver.has(instance):
                    continue
                url = f"{address.rstrip('/')}/studies/{study}/series/{series}/instances/{instance}"
                try:
                    get = partial(fetch, session, url, receiver.limits.image_bytes)
                    status = receiver.store(place, instance, get)
                except (ValueError, requests.HTTPError) as error:  # of this image alone
                    logger.warning("%s: an image that cannot be fetched (%s)", place, one_line(redact(str(error))))
                    continue
                if status == OUT_OF_RESOURCES:
                    break  # the others would meet the same limit, or the same full disk
                came += status == STORED
    except requests.RequestException as error:
        logger.warning("%s: %s; it is asked again later", place, one_line(redact(str(error))))
    return came


def _images(client: DICOMwebClient, days: int, today: date) -> Iterator[tuple[str, str, str]]:
    """Yield study, series and instance of each image of the accepted kinds."""
    span = f"{today - timedelta(days - 1):%Y%m%d}-{today:%Y%m%d}"
    for modality in _MODALITIES:
        asked = {"StudyDate": span, "Modality": modality}
        for one in client.search_for_series(search_filters=asked, get_remaining=True):
            study, series = _value(one, _STUDY), _value(one, _SERIES)
            if not study or not series:
                continue
            for image in client.search_for_instances(study, series, get_remaining=True):
                instance = _value(image, _INSTANCE)
                if instance and _value(image, _CLASS) in STORAGE_CLASSES:
                    yield study, series, instance


def _value(found: Any, tag: str) -> str:
    """Return a UID of an answer; empty if it is absent or none: it becomes part of an address."""
    element = found.get(tag) if isinstance(found, dict) else None
    values = element.get("Value") if isinstance(element, dict) else None
    value = values[0] if isinstance(values, list) and values else ""
    return value if isinstance(value, str) and _UID.fullmatch(value) else ""
