"""Read JSON and YAML files that may be damaged or hostile: bounded in size and depth, one line for what is wrong.

Refused besides what is malformed: keys that occur twice (the last would silently win), numbers that are not
finite, and in YAML aliases (a few lines can stand for billions), tags, merge keys and keys that are not text.
"""

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import yaml
from pydantic import ValidationError

from pipeline.errors import UserError
from pipeline.escaping import one_line

MAX_JSON_BYTES = 16 * 2**20
MAX_YAML_BYTES = 2**18  # PyYAML reads about 100 KB a second
MAX_DEPTH = 32
_SHOWN = 60


def shown(value: object) -> str:
    """A value of a file for a message: printable, on one line, and cut off where it is long."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # a whole number of thousands of digits, or deep nesting
        text = type(value).__name__
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def first_problem(error: ValidationError) -> str:
    """The first thing that pydantic found wrong: key, value and rule."""
    problem = error.errors(include_url=False, include_context=False)[0]
    key = one_line(".".join(str(part) for part in problem["loc"])) or "the file"
    if problem["type"] == "missing":
        return f"{key} is missing; every key must be set"
    if problem["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        return f"{key} = {shown(problem['input'])}: unknown key"
    rule = one_line(problem["msg"].removeprefix("Value error, "))
    return f"{key} = {shown(problem['input'])}: {rule[0].lower()}{rule[1:]}"


def read_json(path: Path, max_bytes: int = MAX_JSON_BYTES) -> Any:
    """The value in a JSON file.

    Raises:
        FileNotFoundError: there is none.
        UserError: it is malformed, larger or deeper than allowed, or says something twice.
    """
    return parse_json(_read_text(path, max_bytes), str(path))


def read_json_object(path: Path, max_bytes: int = MAX_JSON_BYTES) -> dict[str, Any]:
    """As `read_json`; anything but an object is refused."""
    value = read_json(path, max_bytes)
    if not isinstance(value, dict):
        raise UserError(f"{path}: must be a JSON object, not {shown(value)}")
    return value


def parse_json(text: str, place: str) -> Any:
    """The value in a JSON text; ``place`` is named in errors, which are those of `read_json`."""
    try:
        value = json.loads(
            text, object_pairs_hook=_without_duplicates, parse_constant=_no_constant, parse_float=_finite
        )
    except RecursionError:
        raise UserError(f"{place}: nested deeper than {MAX_DEPTH} levels") from None
    except ValueError as error:
        raise UserError(f"{place}: not JSON: {one_line(str(error))}") from None
    if _depth(value) > MAX_DEPTH:
        raise UserError(f"{place}: nested deeper than {MAX_DEPTH} levels")
    return value


def read_yaml(path: Path) -> Any:
    """The value in a YAML file.

    Raises:
        FileNotFoundError: there is none.
        UserError: it is malformed, larger or deeper than allowed, says something twice, or uses what is
            refused; see this module's docstring.
    """
    text = _read_text(path, MAX_YAML_BYTES)
    try:
        _require_plain(text)
        return yaml.load(text, Loader=_Loader)  # noqa: S506 - a SafeLoader
    except _RefusedError as error:
        raise UserError(f"{path}: {error}") from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date or a number that is none
        raise UserError(f"{path}: not valid YAML: {one_line(str(error))}") from None


def _read_text(path: Path, max_bytes: int) -> str:
    if path.exists() and not path.is_file():
        raise UserError(f"{path}: is not a file")
    with path.open("rb") as file:
        content = file.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise UserError(f"{path}: is larger than {max_bytes} bytes, which is more than such a file can need")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is not UTF-8 text: {error.reason} at byte {error.start}") from None


def _without_duplicates(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"key {shown(key)} is there twice")
        found[key] = value
    return found


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a finite number")


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"{digits[:_SHOWN]} is not a finite number")
    return value


def _depth(value: object) -> int:
    """How many containers lie in each other; level by level, since a stack has an end."""
    depth, level = 0, [value]
    while level := [one for one in level if isinstance(one, dict | list)]:
        depth += 1
        if depth > MAX_DEPTH:
            break
        level = [child for one in level for child in _children(one)]
    return depth


def _children(container: dict[str, Any] | list[Any]) -> Iterator[Any]:
    yield from container.values() if isinstance(container, dict) else container


class _RefusedError(ValueError):
    """Valid YAML that is refused; the message is the rest of the line."""


def _require_plain(text: str) -> None:
    """Look at the parser's events, which come one by one: nothing is expanded, and no depth needs a stack."""
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        line = event.start_mark.line + 1 if event.start_mark else 1
        if isinstance(event, yaml.AliasEvent):
            raise _RefusedError(f"line {line}: aliases (*{one_line(str(event.anchor))}) are not read; write it out")
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > MAX_DEPTH:
                raise _RefusedError(f"line {line}: nested deeper than {MAX_DEPTH} levels")
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if isinstance(event, yaml.CollectionStartEvent | yaml.ScalarEvent) and event.tag is not None:
            raise _RefusedError(f"line {line}: tags ({one_line(event.tag)}) are not read")
        if isinstance(event, yaml.ScalarEvent) and event.value == "<<" and event.style is None:
            raise _RefusedError(f"line {line}: merge keys (<<) are not read; write the keys out")


class _Loader(yaml.SafeLoader):
    """A `SafeLoader` whose mappings have text for keys, each once."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """The mapping, once its keys are looked at."""
        seen: set[str] = set()
        for key, _ in node.value:
            line = key.start_mark.line + 1
            if key.tag != "tag:yaml.org,2002:str":
                raise _RefusedError(f"line {line}: key {shown(key.value)} is not text; put it in quotes")
            if key.value in seen:
                raise _RefusedError(f"line {line}: key {shown(key.value)} is there twice")
            seen.add(key.value)
        return super().construct_mapping(node, deep)
