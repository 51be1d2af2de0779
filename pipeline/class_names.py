"""Names of the classes of boxes, and the lists of them that describe a study."""

from collections.abc import Iterable
from typing import Annotated

from pydantic import Field

# A name becomes part of metric keys, in which MLflow accepts these characters and no others. No " + ": see SEPARATOR.
_WORD = r"[A-Za-z0-9][A-Za-z0-9 ._-]*"
ClassName = Annotated[str, Field(pattern=rf"^{_WORD}(/{_WORD})*$", max_length=64)]

SEPARATOR = " + "


def folded(name: str) -> str:
    """Return the name without differences of case and spacing, for comparisons."""
    return " ".join(name.split()).casefold()


def join_classes(names: Iterable[str]) -> str:
    """Return one text that lists the classes of a study."""
    return SEPARATOR.join(names)


def split_classes(text: str) -> list[str]:
    """Return the classes that a text lists; a text that is one name is one class."""
    return text.split(SEPARATOR)
