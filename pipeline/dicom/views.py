"""The view of a radiograph, from the elements of a DICOM header that may name it."""

import re

import pydicom

from pipeline.dicom.header import items, optional

# LAT is a lateral view whose side is not known. Other words may be anything, even a name, and do not leave the file.
VIEWS = frozenset({"AP", "PA", "LL", "RL", "LAT", "LLD", "RLD", "LLO", "RLO"})
FRONTAL = frozenset({"AP", "PA"})
LATERAL = frozenset({"LL", "RL", "LAT"})

# Codes of DICOM PS3.16, CID 4010: SNOMED CT's, and the older ones of the schemes SRT and SNM3.
_CODES = {
    "399348003": "AP", "R-10206": "AP",
    "272479007": "PA", "R-40888": "PA", "R-10214": "PA",
    "399173006": "LL", "R-10236": "LL",
    "399198007": "RL", "R-10232": "RL",
    "399067008": "LAT", "R-102CD": "LAT",
}  # fmt: skip
# Words of descriptions in English, German, French, Italian, Spanish and Portuguese.
_LATERAL_WORDS = frozenset({"LAT", "LATERAL", "LATERALE", "LL", "RL", "SEITLICH", "PROFIL", "PROFILO", "PERFIL"})
_OTHER_FRONTAL_WORDS = frozenset({"FRONTAL", "FRONTALE", "FACE"})
# A decubitus image is frontal although it is called lateral; an oblique one is neither.
_NEITHER = re.compile(r"DECUB|OBLI|SCHRAEG|SCHRÄG")


def view_of(dataset: pydicom.Dataset) -> str:
    """Return one of `VIEWS`, or an empty text if the header does not tell.

    The elements are asked in the order ViewPosition, ViewCodeSequence, SeriesDescription; the first that tells counts.
    """
    position = _text(dataset, "ViewPosition")
    if position in VIEWS:
        return position
    return view_in_words(position) or _coded(dataset) or view_in_words(_text(dataset, "SeriesDescription"))


def view_in_words(text: str) -> str:
    """Return the only view that the words of a description name, such as AP in ``Chest a.p. portable``."""
    text = re.sub(r"\b([AP])[. /-]{1,2}([AP])\b", r"\1\2", text.upper())
    text = re.sub(r"POSTER\w*[ -]*ANTERIOR", "PA", re.sub(r"ANTER\w*[ -]*POSTERIOR", "AP", text))
    words = set(re.findall(r"[^\W\d_]+", text))
    frontal, lateral = words & FRONTAL, words & _LATERAL_WORDS
    if _NEITHER.search(text):
        lateral = set()
    if lateral and not frontal and not words & _OTHER_FRONTAL_WORDS:
        sides = lateral & {"LL", "RL"}
        return min(sides) if len(sides) == 1 else "LAT"
    return min(frontal) if len(frontal) == 1 and not lateral else ""


def _text(dataset: pydicom.Dataset, keyword: str) -> str:
    return str(optional(dataset, keyword) or "").strip().upper()


def _coded(dataset: pydicom.Dataset) -> str:
    try:
        codes = [_CODES.get(_text(item, "CodeValue"), "") for item in items(dataset, "ViewCodeSequence")]
    except Exception:  # noqa: BLE001 - a parser of hostile bytes fails in any way, and the view is optional
        return ""
    return codes[0] if len(codes) == 1 else ""
