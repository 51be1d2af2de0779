"""Prepared data that have changed since they were written: reading them is an error."""

import hashlib
import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from pipeline.assembly.inputs import read_inputs
from pipeline.data.manifest import MANIFEST, write_manifest
from pipeline.data.prepared import BOXES, INDEX, read_boxes, read_index
from pipeline.data.splits import read_splits
from pipeline.errors import UserError
from pipeline.params import load_params
from pipeline.stages.preprocess import preprocess
from pipeline.stages.split import split

SHARD, OTHER = "images-00001.npy", "images-00002.npy"


@pytest.fixture(scope="module")
def _whole(tmp_path_factory, sample, _small_params):
    folder, here = tmp_path_factory.mktemp("prepared"), Path.cwd()
    os.chdir(folder)
    try:
        (folder / "params.yaml").write_text(yaml.safe_dump(_small_params))
        (folder / "data").mkdir()
        (folder / "data/rsna").symlink_to(sample)
        params = load_params()
        preprocess(params)
        split(params)
    finally:
        os.chdir(here)
    return folder, params


@pytest.fixture
def prepared(_whole, tmp_path):
    """Copy prepared data and their splits; return (folder, a function that reads them as training does)."""
    shutil.copytree(_whole[0] / "data", tmp_path / "data", symlinks=True, dirs_exist_ok=True)
    folder = tmp_path / "data/prepared"
    return folder, lambda: read_inputs(_whole[1], folder, tmp_path / "data/splits.csv")


def test_sound_data_are_read(prepared):
    folder, read = prepared
    parts = read()
    assert sum(len(part.index) for part in parts.values()) == 60
    manifest = json.loads((folder / MANIFEST).read_text())
    assert sorted(manifest["files"]) == sorted(path.name for path in folder.iterdir() if path.name != MANIFEST)
    for name, entry in manifest["files"].items():
        content = (folder / name).read_bytes()
        assert entry == {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def test_the_manifest_is_the_same_each_time(prepared):
    folder, _ = prepared
    before = (folder / MANIFEST).read_bytes()
    write_manifest(folder)
    assert (folder / MANIFEST).read_bytes() == before


def cut(name, share):
    def damage(folder):
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: int(share * len(content))])

    return damage


def cut_at_line(name):
    def damage(folder):
        lines = (folder / name).read_text().splitlines(keepends=True)
        (folder / name).write_text("".join(lines[:-2]))

    return damage


def change(name, edit):
    def damage(folder):
        (folder / name).write_bytes(edit((folder / name).read_bytes()))

    return damage


def zero(content):
    return bytes(len(content))


def zero_block(content):
    """Zero one block and keep the header sound, as a disk may return a file after a power cut."""
    return content[:4096] + bytes(4096) + content[8192:]


def flip_bit(content):
    place = len(content) // 2
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


def as_dtype(folder):
    np.save(folder / SHARD, np.load(folder / SHARD).astype(np.float32))


def swap(folder):
    (folder / SHARD).rename(folder / "x")
    (folder / OTHER).rename(folder / SHARD)
    (folder / "x").rename(folder / OTHER)


DAMAGES = {
    "index cut": (cut(INDEX, 0.5), INDEX),
    "index cut at a line": (cut_at_line(INDEX), INDEX),
    "index empty": (cut(INDEX, 0), INDEX),
    "index changed": (change(INDEX, lambda text: text.replace(b",128,", b",129,", 1)), INDEX),
    "boxes cut": (cut(BOXES, 0.5), BOXES),
    "boxes cut at a line": (cut_at_line(BOXES), BOXES),
    "boxes empty": (cut(BOXES, 0), BOXES),
    "boxes gone": (lambda folder: (folder / BOXES).unlink(), BOXES),
    "shard zeroed": (change(SHARD, zero), SHARD),
    "block zeroed": (change(SHARD, zero_block), SHARD),
    "bit flipped": (change(SHARD, flip_bit), SHARD),
    "shard cut": (cut(SHARD, 0.5), SHARD),
    "shard empty": (cut(SHARD, 0), SHARD),
    "shard gone": (lambda folder: (folder / SHARD).unlink(), SHARD),
    "shards swapped": (swap, SHARD),
    "shard of floats": (as_dtype, SHARD),
    "no manifest": (lambda folder: (folder / MANIFEST).unlink(), MANIFEST),
    "manifest cut": (cut(MANIFEST, 0.7), MANIFEST),
    "manifest empty": (cut(MANIFEST, 0), MANIFEST),
    "manifest with a path": (change(MANIFEST, lambda text: text.replace(b"index.csv", b"../x.csv")), MANIFEST),
    "manifest without the index": (
        change(MANIFEST, lambda text: re.sub(rb'"index.csv": \{[^}]*\},?', b"", text).replace(b",\n    \n  }", b"}")),
        MANIFEST,
    ),
}


@pytest.mark.parametrize(("damage", "place"), DAMAGES.values(), ids=DAMAGES)
def test_damage_stops_the_reader_in_one_line(prepared, damage, place):
    folder, read = prepared
    damage(folder)
    with pytest.raises(UserError) as caught:
        read()
    message = str(caught.value)
    assert message.startswith(str(folder))
    assert place in message
    assert "dvc repro" in message
    assert message.isprintable()


def forge(folder, name, column, row, value):
    table = pd.read_csv(folder / name, dtype=str, keep_default_na=False)
    table.loc[row, column] = value
    table.to_csv(folder / name, index=False)
    write_manifest(folder)


FORGED = {
    "row beyond": (INDEX, "row", "16", "names row 16"),
    "row far beyond": (INDEX, "row", "9" * 30, "not a table"),
    "row below": (INDEX, "row", "-1", "line 2: row = -1: must be at least 0"),
    "row of another": (INDEX, "row", "1", "must be that of one study"),
    "a path": (INDEX, "shard", "../rsna/x.npy", "line 2: shard = ../rsna/x.npy: must be the name of a shard"),
    "another shard": (INDEX, "shard", "images-00077.npy", "names the shard images-00077.npy"),
    "no height": (INDEX, "height", "0", "height = 0: must be 1 to 65535"),
    "negative width": (INDEX, "width", "-128", "width = -128"),
    "huge": (INDEX, "height", "99999999", "height = 99999999"),
    "no number": (INDEX, "width", "many", "not a table"),
    "target": (INDEX, "target", "7", "target = 7: must be 0 or 1"),
    "nobody": (INDEX, "patientId", "", "must be an id"),
    "group": (INDEX, "groupId", "", "groupId = : must be an id"),
    "negative box": (BOXES, "width", "-5", "line 2: width = -5.0: must be above 0"),
    "flat box": (BOXES, "height", "0", "height = 0.0: must be above 0"),
    "box without an end": (BOXES, "height", "inf", "height = inf"),
    "box of nothing": (BOXES, "x", "nan", "x"),
}


@pytest.mark.parametrize(("name", "column", "value", "rule"), FORGED.values(), ids=FORGED)
def test_absurd_values_are_refused(prepared, name, column, value, rule):
    folder, read = prepared
    forge(folder, name, column, 0, value)
    with pytest.raises(UserError) as caught:
        read()
    assert rule in str(caught.value)
    assert str(caught.value).isprintable()


def test_columns_that_are_not_those_of_the_index(prepared):
    folder, _ = prepared
    whole = (folder / INDEX).read_text()
    for text in (whole.replace("height", "hight", 1), "".join(f"{line},1\n" for line in whole.splitlines())):
        (folder / INDEX).write_text(text)
        write_manifest(folder)
        with pytest.raises(UserError, match="must have the columns|not a table"):
            read_index(folder)
    lines = whole.splitlines(keepends=True)
    (folder / INDEX).write_text("".join([lines[0], *(line.replace("\n", ",1\n") for line in lines[1:])]))
    write_manifest(folder)
    with pytest.raises(UserError, match="must have the columns|not a table"):
        read_index(folder)


def test_studies_of_unknown_age_and_spacing(prepared):
    folder, _ = prepared
    forge(folder, INDEX, "age", 0, "")
    forge(folder, INDEX, "spacing", 0, "")
    index = read_index(folder)
    assert np.isnan(index["age"][0])
    assert np.isnan(index["spacing"][0])
    assert index["spacing"].dtype == np.float64
    assert len(read_boxes(folder, index["patientId"].to_list(), ["lung opacity"])[0]) == 60


def cut_in_split(text):
    *lines, last = text.splitlines(keepends=True)
    return "".join([*lines, ",".join(last.split(",")[:3]), ",tr"])


SPLITS = {
    "cut at a line": (lambda text: "".join(text.splitlines(keepends=True)[:-1]), "lacks study"),
    "cut": (cut_in_split, "split 'tr': must be train, val, test or leaked"),
    "cut in an id": (lambda text: text[: text.rindex("\n", 0, -1) + 4], "must be"),
    "empty": (lambda text: "", "not a table"),
    "header": (lambda text: text.replace("split,", "spilt,", 1), "must have the columns"),
    "unknown": (lambda text: text + text.splitlines()[-1].replace(text.splitlines()[-1].split(",")[0], "nobody") + "\n",
                "patientId 'nobody': is not in"),
    "twice": (lambda text: text + text.splitlines()[-1] + "\n", "must be there once"),
    "bytes": (lambda text: "\x00\x1b" + text, "must have the columns"),
}  # fmt: skip


@pytest.mark.parametrize(("edit", "rule"), SPLITS.values(), ids=SPLITS)
def test_splits_that_are_not_whole(prepared, edit, rule):
    folder, _ = prepared
    path = folder.parent / "splits.csv"
    path.write_text(edit(path.read_text()))
    with pytest.raises(UserError) as caught:
        read_splits(path, read_index(folder))
    assert rule in str(caught.value)
    assert "dvc repro split" in str(caught.value)


def test_a_cut_off_table_of_splits_does_not_move_patients(prepared, tmp_path, small_params, write_params):
    folder, _ = prepared
    path = folder.parent / "splits.csv"
    whole = path.read_text()
    lines = whole.splitlines(keepends=True)
    for content, rule in (
        (cut_in_split(whole), "its lines do not name one rule"),
        (whole[:-20], "not a table"),
        ("".join(lines[:3]), f"has 2 of {len(lines) - 1} studies"),
        (lines[0], "its lines do not name one rule"),
        (lines[0] + 's,g,train,train,"[17, 1]"\n', r"rule \[17, 1\]: must be a JSON object"),
        (lines[0] + "s,g,train,train,x\n", "rule: not JSON"),
    ):
        path.write_text(content)
        with pytest.raises(UserError, match=rule):
            split(load_params(write_params(small_params)))
        assert path.read_text() == content
