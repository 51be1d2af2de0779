"""The parser of a request's body: MLflow's formats without MLflow's parsers, which quote the body in their errors."""

import csv
import io
import json
from typing import Any, NoReturn, TypeGuard

from pipeline.delivery.served import DICOM, IMAGE, RequestError

Row = dict[str, Any]

CSV, JSON = "text/csv", "application/json"
_COLUMNS = (DICOM, IMAGE)
_KEYS = ("dataframe_split", "dataframe_records", "instances", "inputs")
# Counted before parsing, because Python's objects take up to 40 times as much memory as their JSON:
# an image of 1,024 x 1,024 has 1,025 lists and a million values; base64 has none of these characters.
_MOST = {b"[": 2**18, b",": 2**24, b"{": 2**12, b":": 2**12, b'"': 2**14}
_MAX_CSV_COMMAS = 2**14


def parse_body(body: bytes, content_type: str) -> list[Row]:
    """Parse the rows of a request: dicts with ``dicom``, ``image`` or neither; other columns are left out.

    Raises:
        RequestError: 415 for another content type, 400 for a body that is not of its type.
    """
    kind, *settings = (part.strip().lower() for part in content_type.split(";"))
    parse = {CSV: _parse_csv, JSON: _parse_json}.get(kind)
    if parse is None or any(one not in ("charset=utf-8", 'charset="utf-8"') for one in settings):
        raise RequestError(415, f"the content type must be {JSON} or {CSV}, in UTF-8")
    return parse(body)


def _parse_json(body: bytes) -> list[Row]:
    if any(body.count(sign) > most for sign, most in _MOST.items()):
        raise RequestError(400, f"more than {_MOST[b'[']} lists, {_MOST[b'{']} objects or {_MOST[b',']} values")
    try:
        parsed = json.loads(body.decode("utf-8"), parse_constant=_refuse)
    except (ValueError, RecursionError):  # ValueError: also bad UTF-8, or a number of thousands of digits
        raise RequestError(400, "the body is not JSON that can be read") from None
    keys = [key for key in _KEYS if isinstance(parsed, dict) and key in parsed]
    if len(keys) != 1:
        raise RequestError(400, f"the body must be an object with one of {', '.join(_KEYS)}")
    if parsed.get("params"):
        raise RequestError(400, "the model has no params")
    content = parsed[keys[0]]
    return _split(content) if keys[0] == "dataframe_split" else _records(content)


def _refuse(_: str) -> NoReturn:
    """Refuse NaN and Infinity, which are Python's, not JSON's."""
    raise ValueError


def _split(content: Any) -> list[Row]:
    """Parse names of columns, and a list for each row."""
    names, data = (content.get("columns"), content.get("data")) if isinstance(content, dict) else (None, None)
    if _all(names, str) and _all(data, list) and {len(row) for row in data} <= {len(set(names))} == {len(names)}:
        return [_known(dict(zip(names, row, strict=True))) for row in data]
    raise RequestError(400, "dataframe_split needs columns (a list of names) and data (for each row, a list as long)")


def _records(content: Any) -> list[Row]:
    """Parse an object for each row, or a list for each column."""
    if _all(content, dict):
        return [_known(row) for row in content]
    if isinstance(content, dict) and content and _all(list(content.values()), list):
        columns = _known(content)
        if len({len(values) for values in columns.values()}) == 1:
            return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    raise RequestError(
        400, "must be a list with an object for each row, or an object with a list for each column, all as long"
    )


def _all(values: Any, kind: type) -> TypeGuard[list[Any]]:
    return isinstance(values, list) and all(isinstance(one, kind) for one in values)


def _known(row: Row) -> Row:
    return {name: row[name] for name in _COLUMNS if name in row}


def _parse_csv(body: bytes) -> list[Row]:
    """Parse a header, and base64 files in the column ``dicom``; images have no form in CSV."""
    if body.count(b",") + body.count(b"\n") > _MAX_CSV_COMMAS:
        raise RequestError(400, f"more than {_MAX_CSV_COMMAS} fields")
    csv.field_size_limit(max(len(body), csv.field_size_limit()))  # otherwise a field is limited to 128 KiB
    try:
        table = list(csv.reader(io.StringIO(body.decode("utf-8-sig"), newline=""), strict=True))
    except (ValueError, csv.Error):
        raise RequestError(400, "the body is not CSV that can be read") from None
    names, rows = (table[0], [row for row in table[1:] if row]) if table else ([], [])
    if names.count(DICOM) != 1 or any(len(row) != len(names) for row in rows):
        raise RequestError(400, f"CSV needs a column '{DICOM}' in its first line, and as many fields in every line")
    return [{DICOM: row[names.index(DICOM)]} for row in rows]
