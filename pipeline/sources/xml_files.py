"""Reading of XML label files, which may be hostile."""

from pathlib import Path
from xml.etree import ElementTree as ET  # declarations, with which entities are defined, are refused

from pipeline.errors import UserError
from pipeline.escaping import one_line

MAX_BYTES = 2**28


def read_xml(path: Path) -> ET.Element:
    """Return the root of an XML file.

    Raises:
        UserError: the file is malformed, too large, or declares a document type, whose entities may expand without end.
    """
    with path.open("rb") as file:
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise UserError(f"{path}: is larger than {MAX_BYTES} bytes")
    if b"\0" in content:
        raise UserError(f"{path}: not UTF-8 text")
    if b"<!DOCTYPE" in content or b"<!ENTITY" in content:
        raise UserError(f"{path}: declares a document type, which is not read; remove the line <!DOCTYPE ...>")
    try:
        return ET.fromstring(content)  # noqa: S314 - no entities, see above
    except (ET.ParseError, ValueError, LookupError) as error:
        raise UserError(f"{path}: not XML: {one_line(str(error))}") from None


def text_of(element: ET.Element, path: str, place: str) -> str:
    """Return the text of a part of the element.

    Raises:
        UserError: it has no such part.
    """
    text = element.findtext(path)
    if text is None or not text.strip():
        raise UserError(f"{place}: has no {path}")
    return text.strip()
