"""Escaping of text from outside, which makes it harmless for terminals, logs, pages and spreadsheets."""

import re
from collections.abc import Iterable

import pandas as pd

# Spreadsheets run a cell that begins like this as a formula; the wide forms are those of East Asian keyboards.
_FORMULA = re.compile(r"'*\s*[=+\-@\x00-\x1f\x7f＝＋－＠]")
_LEFT_OUT = " ... "
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


def printable(value: object, limit: int = 200) -> str:
    """Return the text of ``value`` with control characters escaped, cut to ``limit`` characters.

    Bidirectional marks, lone surrogates (names that are not UTF-8) and all else that Unicode calls not printable are
    escaped too: a terminal shows the text as it is written, and does not act on it.
    """
    text = str(value)
    shown = text if len(text) <= limit else text[:limit] + "..."
    return "".join(one if one.isprintable() else ascii(one)[1:-1] for one in shown)


def quoted(value: object, limit: int = 60) -> str:
    """Return `printable` text in quotes, for a value that a message shows."""
    return f"'{printable(value, limit)}'"


def one_line(text: str, limit: int = 240) -> str:
    """Return `printable` text on one line, to quote a library in a message; `shortened` to ``limit`` characters."""
    return printable(shortened(text, limit), limit)


def shortened(text: str, limit: int = 200) -> str:
    """Return ``text`` on one line, with its middle left out if it has more than ``limit`` characters.

    The end stays, because libraries name the cause of an error last.
    """
    line = " ".join(text.split())
    if len(line) <= limit:
        return line
    end = 2 * limit // 3
    return f"{line[: limit - end - len(_LEFT_OUT)]}{_LEFT_OUT}{line[-end:]}"


def markdown_cell(value: object) -> str:
    """Return the text of ``value`` as one cell of a Markdown table, without effect as markup."""
    text = " ".join(str(value).split())
    for sign, escaped in (("\\", "\\\\"), ("|", "\\|"), ("<", "&lt;"), ("`", "\\`"), ("[", "\\[")):
        text = text.replace(sign, escaped)
    return text


def safe_cell(value: object) -> str:
    """Return a table's cell that no spreadsheet takes for a formula; `original_cell` returns the original text.

    Text that begins with ``=``, ``+``, ``-``, ``@`` or a control character, also after spaces, gets an apostrophe in
    front, which spreadsheets read as "text"; numbers such as -1.5 stay as they are.
    """
    text = str(value)
    return f"'{text}" if _FORMULA.match(text) and not _NUMBER.fullmatch(text) else text


def original_cell(cell: str) -> str:
    """Return the text that `safe_cell` turned into this cell."""
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell


def safe_table(table: pd.DataFrame) -> pd.DataFrame:
    """Return the table with `safe_cell` applied to its headers and to every cell that is text."""
    columns = [_safe_column(table[name]) for name in table.columns]
    made = pd.concat(columns, axis=1) if columns else table.copy()
    made.columns = pd.Index(_safe(table.columns))
    return made


def _safe_column(column: pd.Series) -> pd.Series:
    if pd.api.types.is_numeric_dtype(column.dtype):
        return column
    return column.map(lambda cell: safe_cell(cell) if isinstance(cell, str) else cell)


def _safe(names: Iterable[object]) -> list[object]:
    return [safe_cell(name) if isinstance(name, str) else name for name in names]
