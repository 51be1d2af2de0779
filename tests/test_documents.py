import json
import math

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from pipeline.documents import MAX_DEPTH, MAX_JSON_BYTES, parse_json, read_json, read_json_object, read_yaml
from pipeline.errors import UserError

numbers = st.integers(-(10**18), 10**18) | st.floats(allow_nan=False, allow_infinity=False)
values = st.recursive(
    st.none() | st.booleans() | numbers | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=15,
)


@given(values)
def test_what_json_writes_is_read_again(value):
    assert parse_json(json.dumps(value), "x") == value


@given(st.binary(max_size=200) | values.map(lambda value: json.dumps(value).encode()[:-1]))
def test_any_bytes_are_a_value_or_one_line(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "any"
    path.write_bytes(content)
    for read in (read_json, read_yaml):
        said = f"{path}: "
        try:
            read(path)
        except UserError as error:
            said = str(error)
        assert said.startswith(f"{path}: ")
        assert said.isprintable()


def nested(depth):
    return "[" * depth + "]" * depth


BAD_JSON = {
    "nan": ('{"a": NaN}', "NaN is not a finite number"),
    "infinity": ("[-Infinity]", "-Infinity is not a finite number"),
    "overflow": ("[1e999]", "1e999 is not a finite number"),
    "twice": ('{"a": {"b": 1, "b": 2}}', "key 'b' is there twice"),
    "deep": (nested(MAX_DEPTH + 1), f"nested deeper than {MAX_DEPTH} levels"),
    "very deep": (nested(200_000), f"nested deeper than {MAX_DEPTH} levels"),
    "deep object": ('{"a":' * 100_000, f"nested deeper than {MAX_DEPTH} levels"),
    "digits": ("9" * 5000, "not JSON"),
    "cut": ('{"a": 1', "not JSON"),
    "more": ('{"a": 1} {}', "not JSON"),
    "empty": ("", "not JSON"),
    "control": ('{"\x1b[31m": 1}', "not JSON"),
    "latin": ('{"a": "é"}'.encode("latin-1"), "is not UTF-8 text"),
    "utf-16": ('{"a": 1}'.encode("utf-16"), "is not UTF-8 text"),
    "large": (b" " * (MAX_JSON_BYTES + 1), "is larger than"),
}


@pytest.mark.parametrize(("text", "rule"), BAD_JSON.values(), ids=BAD_JSON)
def test_bad_json_is_refused_in_one_line(tmp_path, text, rule):
    path = tmp_path / "a.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError) as caught:
        read_json(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert rule in str(caught.value)
    assert len(str(caught.value)) < 500
    assert str(caught.value).isprintable()


def test_what_a_json_file_may_have(tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(b'\xef\xbb\xbf{"a": [1, 2.5, null]}')  # with a byte order mark, as the Windows editor writes it
    assert read_json_object(path) == {"a": [1, 2.5, None]}
    path.write_text(nested(MAX_DEPTH))
    assert read_json(path)
    path.write_text("[]")
    with pytest.raises(UserError, match=r"must be a JSON object, not \[\]"):
        read_json_object(path)
    with pytest.raises(UserError, match="is not a file"):
        read_json(tmp_path)
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "none.json")


LAUGHS = "a: &a [x, x]\n" + "".join(
    f"{after}: &{after} [*{name}, *{name}]\n" for name, after in zip("abcdef", "bcdefg", strict=True)
)
BAD_YAML = {
    "aliases": (LAUGHS, "line 2: aliases (*a) are not read"),
    "loop": ("a: &a [*a]\n", "line 1: aliases"),
    "twice": ("train:\n  lr: 1\n  epochs: 2\n  lr: 3\n", "line 4: key 'lr' is there twice"),
    "twice quoted": ('a: 1\n"a": 2\n', "line 2: key 'a' is there twice"),
    "deep": (nested(100_000), f"line 1: nested deeper than {MAX_DEPTH} levels"),
    "python": ("a: !!python/object/apply:os.system [id]\n", "line 1: tags (tag:yaml.org,2002:python/"),
    "set": ("a:\n  !!set {x, y}\n", "line 2: tags"),
    "merge": ("a: {b: 1}\nc:\n  <<: {d: 2}\n", "line 3: merge keys"),
    "number key": ("a: 1\n2: 3\n", "line 2: key '2' is not text"),
    "word key": ("on: 1\n", "line 1: key 'on' is not text"),
    "list key": ("? [a]\n: 1\n", "is not text"),
    "digits": (f"a: {'9' * 5000}\n", "not valid YAML"),
    "date": ("a: 2020-13-45\n", "not valid YAML"),
    "cut": ("a: [", "not valid YAML"),
    "two": ("a: 1\n---\nb: 2\n", "not valid YAML"),
    "control": ("a: \x1b[31m\n", "not valid YAML"),
    "large": ("#" * 300_000, "is larger than"),
}  # fmt: skip


@pytest.mark.parametrize(("text", "rule"), BAD_YAML.values(), ids=BAD_YAML)
def test_bad_yaml_is_refused_in_one_line(tmp_path, text, rule):
    path = tmp_path / "params.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        read_yaml(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert rule in str(caught.value)
    assert str(caught.value).isprintable()


def test_yaml_is_read_as_before(tmp_path, repository):
    for name in ("params.yaml", "profiles/rsna.yaml", "dvc.yaml"):
        assert read_yaml(repository / name) == yaml.safe_load((repository / name).read_text())
    (tmp_path / "a.yaml").write_text("\ufeffa: &unused 1\nb: {c: [.nan, 1e3, 0x10]}\n", encoding="utf-8")
    found = read_yaml(tmp_path / "a.yaml")
    assert found["a"] == 1
    assert math.isnan(found["b"]["c"][0])


def test_number_keys_are_read_where_they_are_asked_for(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("names:\n  0: a\n  1: b\n")
    assert read_yaml(path, number_keys=True) == {"names": {0: "a", 1: "b"}}
    with pytest.raises(UserError, match="line 2: key '0' is not text"):
        read_yaml(path)
    path.write_text("names:\n  0: a\n  0: b\n")
    with pytest.raises(UserError, match="line 3: key '0' is there twice"):
        read_yaml(path, number_keys=True)
