"""Tables in many dialects: each reads the same, where only one reading is possible."""

import csv
import gzip
import io
import time
import zipfile

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.data.annotations import BOX, CLASSES, GROUPS, LABELS, read_annotations
from pipeline.errors import UserError
from pipeline.submission import read_submission
from pipeline.tables import read_table, table_exists, text

COLUMNS = ["patientId", *BOX, "Target"]
IDS = st.from_regex(r"[A-Za-z][A-Za-z0-9_-]{0,12}", fullmatch=True)
# Half pixels, because only a number with a decimal comma shows that commas are decimal.
PIXELS = st.integers(0, 2000).map(lambda value: value / 2)


@st.composite
def studies(draw):
    """Draw ids, each with its boxes; the first has a single box, with half a pixel."""
    ids = draw(st.lists(IDS, min_size=1, max_size=6, unique=True))
    made = {}
    for key in ids:
        boxes = draw(st.lists(st.tuples(PIXELS, PIXELS, PIXELS, PIXELS), max_size=3, unique=True))
        made[key] = [(x, y, w + 0.5, h + 0.5) for x, y, w, h in boxes]
    made[ids[0]] = [(10.5, 20, 30, 40), *made[ids[0]]][:1]
    return made


@st.composite
def dialects(draw):
    kind = draw(st.sampled_from(["plain", "r"]))
    separator = draw(st.sampled_from([",", ";", "\t", "|"] + ([" "] if kind == "r" else [])))
    return {
        "row_names": kind == "r",
        "separator": separator,
        "decimal": draw(st.sampled_from([".", ","])) if separator != "," else ".",
        "missing": draw(st.sampled_from(["", "NA", "NaN", "nan", "N/A", "null", "NULL", "None"] if separator != " " else
                                        ["NA", "NaN"])),
        "quoting": draw(st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC])),
        "spaces": separator != " " and draw(st.booleans()),
        "end": draw(st.sampled_from(["\n", "\r\n", "\r"])),
        "last_end": draw(st.booleans()),
        "blank_lines": draw(st.booleans()),
        "trailing": separator != " " and draw(st.sampled_from(["", "rows", "all"])),
        "encoding": draw(st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32",
                                          "latin-1"])),
        "packing": draw(st.sampled_from(["", "", "gz", "zip", "hidden gz", "hidden zip"])),
        "targets": draw(st.sampled_from([("0", "1"), ("0.0", "1.0"), ("FALSE", "TRUE"), ("False", "True"),
                                         ("0", "1.0")])),
        "upper": draw(st.booleans()),
        "turned": draw(st.booleans()),
        "extra": draw(st.booleans()),
        "sep_line": draw(st.booleans()),
    }  # fmt: skip


def rows_of(made, dialect):
    low, high = dialect["targets"]

    def number(value):
        return f"{value:g}".replace(".", dialect["decimal"])

    for key, boxes in made.items():
        yield from ([key, *map(number, box), high] for box in boxes)
        if not boxes:
            yield [key, *[dialect["missing"]] * 4, low]


def written(made, dialect):
    """Return the text of the table."""
    header = [name.upper() if dialect["upper"] else name for name in COLUMNS]
    rows = list(rows_of(made, dialect))
    if dialect["extra"]:
        header, rows = [*header, "reader"], [[*row, "größer"] for row in rows]
    if dialect["turned"]:
        header, rows = header[::-1], [row[::-1] for row in rows]
    if dialect["row_names"]:
        rows = [[str(number), *row] for number, row in enumerate(rows, start=1)]
    lines = []
    for place, row in enumerate([header, *rows]):
        out = io.StringIO()
        csv.writer(out, delimiter=dialect["separator"], quoting=dialect["quoting"], lineterminator="").writerow(row)
        line = out.getvalue()
        if dialect["spaces"]:
            line = line.replace(dialect["separator"], f" {dialect['separator']}  ")
        if dialect["trailing"] == "all" or (dialect["trailing"] == "rows" and place):
            line += dialect["separator"]
        lines.append(line)
        if dialect["blank_lines"]:
            lines.append("")
    told = [f"sep={dialect['separator']}"] if dialect["sep_line"] else []
    return dialect["end"].join([*told, *lines]) + (dialect["end"] if dialect["last_end"] else "")


def packed(folder, name, content, packing):
    path = folder / (name if not packing or "hidden" in packing else f"{name}.{packing}")
    if packing.endswith("gz"):
        content = gzip.compress(content)
    elif packing.endswith("zip"):
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(f"some/{name}", content)
            archive.writestr(f"__MACOSX/some/._{name}", b"\0\5")
        content = out.getvalue()
    path.write_bytes(content)


@settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow])
@given(studies(), dialects())
def test_every_dialect_reads_the_same(tmp_path_factory, made, dialect):
    folder = tmp_path_factory.mktemp("t")
    content = written(made, dialect).encode(dialect["encoding"])
    packed(folder, LABELS, content, dialect["packing"])
    found = read_annotations(folder)
    assert found.issues == []
    assert found.studies["patientId"].to_list() == list(made)
    assert found.studies["target"].to_list() == [int(bool(boxes)) for boxes in made.values()]
    for key, boxes in zip(made, found.boxes_of(list(made)), strict=True):
        assert boxes.tolist() == [list(box) for box in made[key]]


LABEL_TEXT = "patientId,x,y,width,height,Target\n"


@pytest.fixture
def table(tmp_path):
    """Return a function that writes a label table and reads it."""

    def read(content, name=LABELS):
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        return read_annotations(tmp_path)

    return read


def test_rs_default_is_read_with_spaces_between(table):
    found = table('"patientId" "x" "y" "width" "height" "Target"\n"1" "a" 1 2 3 4 1\n"2" "b" NA NA NA NA 0\n')
    assert found.issues == []
    assert found.boxes.to_numpy().tolist() == [["a", 1, 2, 3, 4, 0]]


def test_ids_stay_text(table):
    found = table(LABEL_TEXT + "007,,,,,0\n1e5,,,,,0\nNA,,,,,0\n1.0,,,,,0\nTRUE,,,,,0\n")
    assert found.studies["patientId"].to_list() == ["007", "1e5", "NA", "1.0", "TRUE"]


def test_boxes_may_be_dust_outside(table):
    found = table(LABEL_TEXT + "a,-1e-7,1,2,3,1\n")
    assert found.issues == []
    assert found.boxes["x"].to_list() == [-1e-7]  # the size of the image is not known here


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (LABEL_TEXT + "a,1,2,3\n", r"csv line 2: 4 values, but the header names 6 columns"),
        (LABEL_TEXT + "\n\na,,,,,0\nb,1,2,3,4,1,5\n", r"csv line 5: 7 values, but the header names 6 columns"),
        (LABEL_TEXT + 'a,,,,,0\n"b,,,,,0\nc,,,,,0\n', r"csv line 3: a quote \(\"\) is opened and never closed"),
        (LABEL_TEXT + '"a\n\nb",,,,,0\n../x,,,,,0\n', r"csv line 2: id 'a\\n\\nb': letters"),
        (LABEL_TEXT + 'a,,,,,0,"x\ny"\n', r"csv line 2: 7 values"),
        (LABEL_TEXT.replace("x,", "x,x,") + "a,1,1,2,3,4,1\nb,1,2,2,3,4,1\n",
         r"csv line 3: column 'x' is there 2 times, here with '1' and '2'"),
        (LABEL_TEXT.replace("height", "h\x1b[31m"), r"csv line 1: column 'height' is missing; needs .*'h\\x1b\[31m'"),
        (LABEL_TEXT.replace(",", ";") + "a;1,024;2;3;4;1\n", r"csv line 2, column 'x': '1,024': the comma may be"),
        ("", "not a CSV table but an empty file"),
        ("\n\n", "it is empty; needs the columns patientId"),
        ("<!doctype html><p>", "not a CSV table but an HTML page"),
        (b"\x89PNG\r\n\x1a\n", "not a CSV table but a PNG image"),
        (b"\x1f\x8bbroken", r"cannot be unpacked \(EOFError\)"),
        (b"PK\x03\x04broken", "a zip archive"),
        (LABEL_TEXT + "a\0b,,,,,0\n", "line 2: not a CSV table: it has a zero byte"),
    ],
)  # fmt: skip
def test_what_allows_no_reading_names_the_line(table, content, message):
    with pytest.raises(UserError, match=message) as error:
        table(content)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("a,1,2,3,4,yes", "line 3: Target 'yes'; 0, 1, 0.0, 1.0, FALSE or TRUE is accepted"),
        ("a,1,2,3,4,0.5", "line 3: Target '0.5'"),
        ("a,1,2,3,4,", "line 3: Target ''"),
        ("a,1,2,3_0,4,1", "line 3: x '1', y '2', width '3_0', height '4'; numbers are accepted"),
        ("a,1,2,1e999,4,1", "width '1e999'"),
        ("a,1,2,\x1b[0m,4,1", r"width '\x1b[0m'"),
        ("a,?,,,,0", "line 3: x '?', y '', width '', height ''; empty, NA, NaN, N/A, null and None are accepted"),
        ("a,1,2,3,-4,1", "line 3: width '3', height '-4'"),
    ],
)
def test_a_bad_row_says_where_and_what(table, row, reason):
    found = table(LABEL_TEXT + "\n" + row + "\nb,,,,,0\n")
    assert list(found.problems) == ["a"]
    assert reason in found.problems["a"]


def test_two_readings_are_refused_and_one_is_not(tmp_path):
    path = tmp_path / "p.csv"
    path.write_text('"patientId","PredictionString"\n"1","a",""\n"2","b",""\n')
    with pytest.raises(UserError, match="line 2: 3 values, but .* the first may be a row's name"):
        read_submission(path)
    path.write_text('"patientId","PredictionString"\n"1","a",""\n"2","b","0.5 1 2 3 4"\n')
    assert list(read_submission(path)) == ["a", "b"]
    path.write_text("patientId,class\n1,Normal,\n2,Normal,\n")
    assert read_table(path, ["patientId", "class"]).to_numpy().tolist() == [["1", "Normal"], ["2", "Normal"]]
    path.write_text("patientId,class\na,Normal,checked\nb,Normal,checked\n")
    with pytest.raises(UserError, match="line 2: 3 values"):
        read_table(path, ["patientId", "class"])


def test_packed_tables(tmp_path):
    plain, other = tmp_path / LABELS, tmp_path / f"{LABELS}.zip"
    packed(tmp_path, LABELS, (LABEL_TEXT + "a,,,,,0\n").encode(), "gz")
    assert table_exists(plain)
    assert read_annotations(tmp_path).studies["patientId"].to_list() == ["a"]
    packed(tmp_path, LABELS, (LABEL_TEXT + "b,,,,,0\n").encode(), "zip")
    with pytest.raises(UserError, match="keep one of the two"):
        read_annotations(tmp_path)
    plain.write_text(LABEL_TEXT + "c,,,,,0\n")
    assert read_annotations(tmp_path).studies["patientId"].to_list() == ["c"]
    for names, message in (
        (["a.csv", "b.csv"], "has 2 files"),
        (["[Content_Types].xml", "x"], "a spreadsheet"),
        ([], "0"),
    ):
        with zipfile.ZipFile(other, "w") as archive:
            for name in names:
                archive.writestr(name, LABEL_TEXT)
        with pytest.raises(UserError, match=message):
            read_table(other, COLUMNS)


def test_what_a_table_may_unpack_to_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(text, "MAX_BYTES", 10_000)
    bomb = (LABEL_TEXT + "a,,,,,0\n" * 10_000).encode()
    for packing in ("", "gz", "zip"):
        packed(tmp_path, "bomb.csv", bomb, packing)
        with pytest.raises(UserError, match="more than 10000 bytes"):
            read_table(tmp_path / f"bomb.csv{packing and '.' + packing}", COLUMNS)


def test_tables_of_classes_and_groups_as_people_have_them(tmp_path):
    (tmp_path / LABELS).write_text(LABEL_TEXT + "a,1,2,3,4,1\nb,,,,,0\nc,,,,,0\n")
    (tmp_path / CLASSES).write_text('"patientId";"class";\r"a";"lung  opacity";\r"b";" Normal";\r"c";NORMAL;\r')
    (tmp_path / GROUPS).write_bytes('"patientId"\t"groupId"\n1\ta\tp1\n2\tb\tp1\n3\tc\tp2'.encode("utf-16"))
    found = read_annotations(tmp_path)
    assert found.issues == []
    assert found.studies["class"].to_list() == ["Lung Opacity", "Normal", "Normal"]
    assert found.studies["groupId"].to_list() == ["p1", "p1", "p2"]


def test_studies_of_unknown_patients_are_not_of_one_patient(tmp_path):
    (tmp_path / LABELS).write_text(LABEL_TEXT + "a,,,,,0\nb,,,,,0\nc,,,,,0\n")
    (tmp_path / GROUPS).write_text("patientId,groupId\na,NA\nb,NA\nc,p1\n")
    found = read_annotations(tmp_path)
    assert found.problems.keys() == {"a", "b"}
    assert "no group for this study" in found.problems["a"]


def test_own_class_names_get_the_rule(tmp_path):
    (tmp_path / LABELS).write_text(LABEL_TEXT + "a,1,2,3,4,1\n")
    (tmp_path / CLASSES).write_text("patientId,class\na,Pneumonia\n")
    reason = read_annotations(tmp_path).problems["a"]
    assert "'Pneumonia'" in reason
    assert all(f"'{name}'" in reason for name in ("Lung Opacity", "No Lung Opacity / Not Normal", "Normal"))


def test_tables_of_other_studies_make_nothing_of_this_data_set_unusable(tmp_path):
    (tmp_path / LABELS).write_text(LABEL_TEXT + "a,,,,,0\n")
    (tmp_path / CLASSES).write_text("patientId,class\na,Normal\nx,Normal\nx,Lung Opacity\n")
    (tmp_path / GROUPS).write_text("patientId,groupId\na,p\nx,p\nx,q\n")
    found = read_annotations(tmp_path)
    assert found.problems == {}
    assert sorted(one.rule.name for one in found.issues) == ["class_used", "group_used"]


def test_the_real_number_of_rows_is_read_fast(tmp_path):
    rows = "".join(f"0004cfab-14fd-4e49-80ba-{number:012d},264.0,152.0,213.0,379.0,1\n" for number in range(30_227))
    (tmp_path / LABELS).write_text(LABEL_TEXT + rows)
    start = time.process_time()
    assert len(read_annotations(tmp_path).studies) == 30_227
    assert time.process_time() - start < 4  # it takes 0.7 s on a quiet machine


def test_long_cells_are_read(tmp_path):
    found = " ".join(["0.5 1 2 3 4"] * 40_000)
    (tmp_path / "p.csv").write_text(f"patientId,PredictionString\na,{found}\n")
    assert len(read_submission(tmp_path / "p.csv")["a"][1]) == 40_000
    before = csv.field_size_limit()
    assert before == 131072


def test_submissions_in_other_dialects(tmp_path):
    (tmp_path / "p.csv").write_bytes(
        " PatientID ;predictionString;\r\n\r\na;0.5 1 2 3 4;\r\nb;NaN;\r\nc;;\r\n".encode("utf-16")
    )
    found = read_submission(tmp_path / "p.csv")
    assert {key: scores.tolist() for key, (_, scores, _) in found.items()} == {"a": [0.5], "b": [], "c": []}
    (tmp_path / "p.csv").write_text("patientId,PredictionString\n\na,\n\nb,0.5 1_0 2 3 4\n")
    with pytest.raises(UserError, match="line 5: '0.5 1_0 2 3 4': numbers only"):
        read_submission(tmp_path / "p.csv")


@settings(max_examples=400)
@given(st.one_of(st.binary(max_size=200), st.text(alphabet="aA1,;\t\"' \r\n.\0é|=-", max_size=120).map(str.encode)),
       st.booleans())  # fmt: skip
def test_any_bytes_are_read_or_refused_in_one_line(tmp_path_factory, content, headed):
    path = tmp_path_factory.mktemp("f") / "x.csv"
    path.write_bytes((b"patientId,class\n" if headed else b"") + content)
    said = ""
    try:
        table = read_table(path, ["patientId", "class"], numbers=["class"])
        assert list(table.columns) == ["patientId", "class"]
        assert table.index.is_monotonic_increasing
    except UserError as error:
        said = str(error)
    assert said.isprintable()
