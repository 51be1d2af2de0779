"""Escaping of text from outside: no program acts on it, and the original text stays recognizable."""

import csv
import io

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.escaping import one_line, original_cell, printable, safe_cell, safe_table, shortened

DANGEROUS = ["=1+1", "+1+1", "-1+1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "  =1", "\x00x", "-", "＝1", "'=1", "-inf"]


@pytest.mark.parametrize("text", DANGEROUS)
def test_a_formula_becomes_text(text):
    assert safe_cell(text) == f"'{text}"
    assert original_cell(safe_cell(text)) == text


@pytest.mark.parametrize("text", ["-1.5", "+3", "-1e-07", "1", "", "img-1", "a=b", "'quoted'", "0.9 1 2 3 4", "-.5"])
def test_numbers_and_words_stay(text):
    assert safe_cell(text) == text == original_cell(text)


@given(st.text())
def test_every_cell_comes_back(text):
    safe = safe_cell(text)
    assert original_cell(safe) == text
    first = safe.lstrip()[:1]
    assert not first or first not in "=+-@" or float(text) is not None


def test_tables():
    table = pd.DataFrame({"file": ["=cmd|' /C calc'!A0", "a.dcm"], "=x": [-1.5, 2.0], "n": [None, "+1a"]})
    rows = list(csv.reader(io.StringIO(safe_table(table).to_csv(index=False))))
    assert rows == [["file", "'=x", "n"], ["'=cmd|' /C calc'!A0", "-1.5", ""], ["a.dcm", "2.0", "'+1a"]]
    assert list(safe_table(pd.DataFrame({"a": []})).columns) == ["a"]
    assert safe_table(pd.DataFrame()).empty


@given(st.text())
def test_what_is_shown_has_no_control_characters(text):
    assert printable(text).isprintable()


def test_shown_text_is_cut_and_plain_text_stays():
    assert printable("img_001, größer") == "img_001, größer"
    assert printable("a\x1b[31mb\u202ec\udcff\n") == r"a\x1b[31mb\u202ec\udcff\n"
    assert printable("x" * 300, 10) == "x" * 10 + "..."


def test_words_for_a_terminal():
    assert one_line("a\n\x1b[31m b") == "a \\x1b[31m b"
    assert one_line(f"{'x' * 10_000} at the end").endswith("x at the end")
    assert len(one_line("x" * 10_000)) == 240


@given(st.text(max_size=600), st.integers(40, 300))
def test_a_cut_keeps_the_start_and_the_end(text, limit):
    line = " ".join(text.split())
    cut = shortened(text, limit)
    assert cut == line if len(line) <= limit else len(cut) == limit
    assert (cut[:4], cut[-12:]) == (line[:4], line[-12:])
