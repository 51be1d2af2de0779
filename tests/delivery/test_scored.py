"""The table of scored studies: a damaged line costs that line, and no other."""

import csv
import os
import stat

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pipeline.delivery.scored import COLUMNS, append_rows, open_scored, read_scored
from pipeline.errors import UserError


def row(number, name="a.dcm"):
    return [f"{number:064x}", name, "2026-01-01T00:00:00+00:00", "models", "0.5", "", "", "PA", "90.5", "40.1", "2"]


@pytest.fixture
def table(tmp_path):
    """Write a table of five rows; return its path."""
    path = tmp_path / "scored.csv"
    open_scored(path)
    append_rows(path, [row(number) for number in range(5)])
    return path


def digests(*numbers):
    return {f"{number:064x}" for number in numbers}


@pytest.mark.parametrize(
    ("number", "damage"),
    [
        (3, lambda line: line[:40]),
        (3, lambda line: line + b",more"),
        (3, lambda line: b"\xff" + line[1:]),
        (3, lambda line: line[:80] + b"\0" * 8 + line[88:]),
        (3, lambda line: b"\0" * len(line)),
        (3, lambda line: line.replace(b"0.5", b"0.x")),
        (3, lambda line: line.replace(b"a.dcm", b'"a.dcm')),
        (3, lambda line: line.replace(b",2", b",-2")),
        (5, lambda line: line[:-2]),
        (0, lambda line: line[:20]),
        (0, lambda line: b"\xfe" + line),
        (0, lambda line: b"\0" * len(line)),
        (0, lambda line: b"something else"),
    ],
)
def test_a_damaged_line_costs_that_line(table, number, damage, caplog):
    lines = table.read_bytes().split(b"\n")
    lines[number] = damage(lines[number])
    table.write_bytes(b"\n".join(lines))
    left = {0, 1, 2, 3, 4} - {number - 1}
    assert {one["sha256"] for one in read_scored(table)} == digests(*left)
    assert open_scored(table) == digests(*left)
    assert "1 damaged lines; they are in" in caplog.text
    assert table.with_name("scored.damaged.csv").read_bytes() == lines[number] + b"\n"
    caplog.clear()
    assert open_scored(table) == digests(*left)
    assert caplog.text == ""
    assert table.read_text().splitlines()[0] == ",".join(COLUMNS)


def test_half_a_line_is_set_aside_even_if_it_looks_whole(table):
    content = table.read_bytes()
    table.write_bytes(content[:-1])
    assert open_scored(table) == digests(0, 1, 2, 3)
    append_rows(table, [row(4)])
    assert open_scored(table) == digests(0, 1, 2, 3, 4)
    assert table.read_bytes() == content


def test_a_table_that_a_spreadsheet_has_saved(table):
    table.write_bytes(b"\xef\xbb\xbf" + table.read_bytes().replace(b"\n", b"\r\n"))
    assert open_scored(table) == digests(0, 1, 2, 3, 4)
    assert not table.with_name("scored.damaged.csv").exists()


def test_a_table_of_which_nothing_is_left_starts_anew(table):
    table.write_bytes(b"\0" * 4096)
    assert open_scored(table) == set()
    assert table.read_text().splitlines() == [",".join(COLUMNS)]
    table.write_bytes(b"")
    assert open_scored(table) == set()


@pytest.mark.parametrize(
    "damage",
    [
        lambda header: b" \n" + header,
        lambda header: b"something else\n" + header,
        lambda header: header[:8] + b"\n" + header[8:],
        lambda header: header[:50] + b"x\n" + header[50:],
        lambda header: header[:20],
        lambda header: b" \n",
    ],
)
def test_a_table_without_rows_starts_anew_whatever_hit_its_header(tmp_path, damage):
    path = tmp_path / "scored.csv"
    open_scored(path)
    path.write_bytes(damage(path.read_bytes()))
    assert open_scored(path) == set()
    assert path.read_text().splitlines() == [",".join(COLUMNS)]


def test_another_table_is_refused(tmp_path):
    path = tmp_path / "scored.csv"
    path.write_text("patientId,PredictionString\nx,\n")
    for action in (open_scored, read_scored):
        with pytest.raises(UserError, match="not a table of scored studies; move it away"):
            action(path)
    assert path.read_text() == "patientId,PredictionString\nx,\n"
    with pytest.raises(UserError, match="no such file"):
        read_scored(tmp_path / "none.csv")


@example(names=[], cut=0, noise=b" \n")
@given(names=st.lists(st.text(max_size=20), max_size=5), cut=st.integers(0, 2000), noise=st.binary(max_size=12))
def test_whatever_names_and_damage_the_other_rows_come_back(tmp_path_factory, names, cut, noise):
    path = tmp_path_factory.mktemp("t") / "scored.csv"
    open_scored(path)
    append_rows(path, [row(number, name) for number, name in enumerate(names)])
    assert open_scored(path) == digests(*range(len(names)))
    assert path.read_bytes().count(b"\n") == 1 + len(names)
    content = path.read_bytes()
    place = min(cut, len(content))
    path.write_bytes(content[:place] + noise + content[place:])
    before = content[:place].count(b"\n")
    hit = set(range(before - 1, before + noise.count(b"\n") + 1))
    found = open_scored(path)
    assert digests(*(number for number in range(len(names)) if number not in hit)) <= found
    append_rows(path, [row(99)])
    assert digests(99) <= open_scored(path)


def test_cells_are_harmless_and_names_come_back(table):
    names = ["=1+1.dcm", "@x", "-1+1", "+a", "\t=1", "\x1b[31mred.dcm", os.fsdecode(b"\xff.dcm"), "'=x", 'a, "b".dcm']
    append_rows(table, [row(10 + number, name) for number, name in enumerate(names)])
    with table.open(newline="", encoding="utf-8") as file:
        cells = [one["file"] for one in csv.DictReader(file)][5:]
    assert not [cell for cell in cells if cell[0] in "=@-+\t" or not cell.isprintable()]
    found = [one["file"] for one in read_scored(table)][5:]
    shown = {4: r"\t=1", 5: r"\x1b[31mred.dcm", 6: r"\udcff.dcm"}
    assert found == [shown.get(number, name) for number, name in enumerate(names)]


def test_only_the_owner_reads_it(table, tmp_path):
    table.chmod(0o644)
    append_rows(table, [row(7)])
    assert stat.S_IMODE(table.stat().st_mode) == 0o600
    with table.open("ab") as file:
        file.write(b"half a line")
    open_scored(table)
    assert {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.glob("scored*")} == {0o600}
