"""Read JSON and YAML files that may be damaged or hostile: size and depth are bounded, and an error is one line.

Besides malformed files these are refused: keys that occur twice (the last would silently win), numbers that are not
finite, and in YAML aliases (a few lines can stand for billions), tags, merge keys and keys that are not text.
"""

import json
import math
import re
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
# pydantic puts the name of a type after a key that may have several types.
_TYPE = re.compile(r"(constrained-|list\[|dict\[|tuple\[|function-)|(Calibration|SensitivityParams|Range|Choices)$")


def shown(value: object) -> str:
    """Return a file's value for a message: printable, on one line, and cut off if it is long."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an integer of thousands of digits, or deep nesting
        text = type(value).__name__
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def first_problem(error: ValidationError) -> str:
    """Describe the first problem that pydantic found: key, value and rule."""
    problem = error.errors(include_url=False, include_context=False)[0]
    key = one_line(".".join(part for part in map(str, problem["loc"]) if not _TYPE.match(part))) or "the file"
    if problem["type"] == "missing":
        return f"{key} is missing; every key must be set"
    if problem["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        return f"{key} = {shown(problem['input'])}: unknown key"
    rule = one_line(problem["msg"].removeprefix("Value error, "))
    return f"{key} = {shown(problem['input'])}: {rule[0].lower()}{rule[1:]}"


def read_json(path: Path, max_bytes: int = MAX_JSON_BYTES) -> Any:
    """Return the value in a JSON file.

    Raises:
        FileNotFoundError: the file does not exist.
        UserError: the file is malformed, larger or deeper than allowed, or has a key twice.
    """
    return parse_json(_read_text(path, max_bytes), str(path))


def read_json_object(path: Path, max_bytes: int = MAX_JSON_BYTES) -> dict[str, Any]:
    """Read a JSON file as `read_json` does; refuse any value but an object."""
    value = read_json(path, max_bytes)
    if not isinstance(value, dict):
        raise UserError(f"{path}: must be a JSON object, not {shown(value)}")
    return value


def parse_json(text: str, source: str) -> Any:
    """Return the value in a JSON text; errors name ``source`` and are those of `read_json`."""
    try:
        value = json.loads(
            text, object_pairs_hook=_without_duplicates, parse_constant=_no_constant, parse_float=_finite
        )
    except RecursionError:
        raise UserError(f"{source}: nested deeper than {MAX_DEPTH} levels") from None
    except ValueError as error:
        raise UserError(f"{source}: not JSON: {one_line(str(error))}") from None
    if _depth(value) > MAX_DEPTH:
        raise UserError(f"{source}: nested deeper than {MAX_DEPTH} levels")
    return value


def read_yaml(path: Path, *, number_keys: bool = False) -> Any:
    """Return the value in a YAML file; with ``number_keys``, keys may be whole numbers too.

    Raises:
        FileNotFoundError: the file does not exist.
        UserError: the file is malformed, larger or deeper than allowed, has a key twice, or uses a refused
            feature; see this module's docstring.
    """
    text = _read_text(path, MAX_YAML_BYTES)
    try:
        _require_plain(text)
        return yaml.load(text, Loader=_NumberKeysLoader if number_keys else _Loader)  # noqa: S506 - SafeLoaders
    except _RefusedError as error:
        raise UserError(f"{path}: {error}") from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: an invalid date or number
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
    pairs_by_key: dict[str, Any] = {}
    for key, value in pairs:
        if key in pairs_by_key:
            raise ValueError(f"key {shown(key)} is there twice")
        pairs_by_key[key] = value
    return pairs_by_key


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a finite number")


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"{digits[:_SHOWN]} is not a finite number")
    return value


def _depth(value: object) -> int:
    """Return how deep containers are nested; counted level by level, because recursion depth is limited."""
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
    """Valid YAML that is refused; the message is the error line without the file's path."""


def _require_plain(text: str) -> None:
    """Check the parser's events one by one: nothing is expanded, and no nesting depth needs recursion."""
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
    """A `SafeLoader` whose mappings must have text keys, each of which occurs once."""

    key_tags: tuple[str, ...] = ("tag:yaml.org,2002:str",)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Check the keys of the mapping, then return it."""
        seen: set[str] = set()
        for key, _ in node.value:
            line = key.start_mark.line + 1
            if key.tag not in self.key_tags:
                raise _RefusedError(f"line {line}: key {shown(key.value)} is not text; put it in quotes")
            if key.value in seen:
                raise _RefusedError(f"line {line}: key {shown(key.value)} is there twice")
            seen.add(key.value)
        return super().construct_mapping(node, deep)


class _NumberKeysLoader(_Loader):
    """A loader for files of others, whose keys may be whole numbers."""

    key_tags = (*_Loader.key_tags, "tag:yaml.org,2002:int")
