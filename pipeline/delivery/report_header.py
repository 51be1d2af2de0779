"""The attributes that a report copies from the header of its image: each is checked, and invalid ones are left out."""

import re
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pydicom
from pydicom.charset import python_encoding
from pydicom.multival import MultiValue

from pipeline.errors import BadStudyError

# Without these, a report would belong to no image.
_REQUIRED = ("StudyInstanceUID", "SeriesInstanceUID", "SOPClassUID", "SOPInstanceUID")
_UID = re.compile(r"[0-9]+(\.[0-9]+)*")
_UID_LENGTH = 64
_TIME = re.compile(r"([01][0-9]|2[0-3])([0-5][0-9]([0-5][0-9](\.[0-9]{1,6})?)?)?")
_UNICODE = "ISO_IR 192"
# PS3.5, 6.2: maximum length of a long string, a short string and a component group of a name, in characters.
_LONG, _SHORT = 64, 16
_MOST_NAME_GROUPS = 3
# Text that contains it had bytes that are not in its character set.
_REPLACEMENT = "\ufffd"


def report_header(image: pydicom.Dataset) -> pydicom.Dataset:
    """Return the attributes that a report takes from ``image``, as text in UTF-8.

    Optional attributes that are absent or invalid are empty, as the standard allows, except for the age and the
    description, which are then absent.

    Raises:
        BadStudyError: a UID is missing or invalid; the message names the attribute, and quotes nothing.
    """
    header = pydicom.Dataset()
    header.SpecificCharacterSet = _UNICODE
    for keyword in _REQUIRED:
        setattr(header, keyword, _uid(image, keyword))
    foreign = not _has_known_characters(image)
    for keyword, check in _OPTIONAL.items():
        text = _text(image, keyword)
        setattr(header, keyword, "" if foreign and not text.isascii() else check(text))
    for keyword in ("PatientAge", "StudyDescription"):
        if not header.get(keyword):
            delattr(header, keyword)
    return header


def _uid(image: pydicom.Dataset, keyword: str) -> str:
    text = _text(image, keyword)
    if not text:
        raise BadStudyError(f"{keyword} is missing")
    if len(text) > _UID_LENGTH or not _UID.fullmatch(text):
        raise BadStudyError(f"{keyword} is not a UID")
    if keyword == "SOPClassUID" and pydicom.uid.UID(text).type != "SOP Class":
        raise BadStudyError(f"{keyword} is not one that the standard defines")
    return text


def _text(image: pydicom.Dataset, keyword: str) -> str:
    """Return an attribute's single value; empty if it is absent, unreadable or has several values."""
    try:
        value = image.get(keyword)
        return "" if value is None or isinstance(value, MultiValue) else str(value).strip(" \0")
    except Exception:  # noqa: BLE001 - a parser of hostile bytes fails in any way
        return ""


def _has_known_characters(image: pydicom.Dataset) -> bool:
    """Return whether the header names character sets, all of them known: only then is text beyond ASCII certain."""
    try:
        value: Any = image.get("SpecificCharacterSet")
        names = [str(name).strip() for name in (value if isinstance(value, MultiValue) else [value or ""])]
    except Exception:  # noqa: BLE001 - a parser of hostile bytes fails in any way
        return False
    # In a list of several, the first may be empty, which means the default.
    return any(names) and all(name in python_encoding for name in names)


def _printable(most: int) -> Callable[[str], str]:
    def check(text: str) -> str:
        harmless = len(text) <= most and text.isprintable() and not set(text) & {"\\", _REPLACEMENT}
        return text if harmless else ""

    return check


def _name(text: str) -> str:
    groups = text.split("=")
    valid = len(groups) <= _MOST_NAME_GROUPS and all(_printable(_LONG)(group) == group for group in groups)
    return text if valid else ""


def _date(text: str) -> str:
    try:
        datetime.strptime(text, "%Y%m%d").replace(tzinfo=UTC)
    except ValueError:
        return ""
    return text if re.fullmatch(r"[0-9]{8}", text) else ""


def _time(text: str) -> str:
    return text if _TIME.fullmatch(text) else ""


def _sex(text: str) -> str:
    return text if text in ("M", "F", "O") else ""


def _age(text: str) -> str:
    # As in the RSNA challenge's files: years, without the unit that DICOM requires.
    if re.fullmatch(r"[0-9]{1,3}", text):
        return f"{int(text):03d}Y"
    return text if re.fullmatch(r"[0-9]{3}[DWMY]", text) else ""


_OPTIONAL: dict[str, Callable[[str], str]] = {
    "PatientID": _printable(_LONG),
    "PatientName": _name,
    "PatientBirthDate": _date,
    "PatientSex": _sex,
    "PatientAge": _age,
    "StudyID": _printable(_SHORT),
    "AccessionNumber": _printable(_SHORT),
    "StudyDate": _date,
    "StudyTime": _time,
    "StudyDescription": _printable(_LONG),
    "ReferringPhysicianName": _name,
}
