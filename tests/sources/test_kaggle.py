import json
import resource
import struct
import subprocess
import sys
import warnings
import zipfile

import pytest

from pipeline.data.annotations import CLASSES, GROUPS, IMAGES, LABELS
from pipeline.errors import UserError
from pipeline.sources import kaggle as download
from pipeline.sources.kaggle import download_challenge, extract_challenge, write_groups


def archive(path, *names):
    with zipfile.ZipFile(path, "w") as file:
        for name in names:
            file.writestr(name, name)
    return path


def test_takes_what_it_knows_and_nothing_else(tmp_path):
    names = (LABELS, CLASSES, f"{IMAGES}/a.dcm", f"{IMAGES}/../../evil.dcm", "../evil", "stage_2_test_images/b.dcm")
    extract_challenge(archive(tmp_path / "c.zip", *names), tmp_path / "out")
    found = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    inside = {f"out/{name}" for name in (LABELS, CLASSES, f"{IMAGES}/a.dcm", f"{IMAGES}/evil.dcm")}
    assert found == {"c.zip"} | inside


def test_another_archive_is_refused(tmp_path):
    with pytest.raises(UserError, match="not the challenge's archive"):
        extract_challenge(archive(tmp_path / "c.zip", "x"), tmp_path / "out")
    (tmp_path / "d.zip").write_text("no zip")
    with pytest.raises(UserError, match="not the challenge's archive"):
        extract_challenge(tmp_path / "d.zip", tmp_path / "out")


def test_without_credentials_one_line_says_how_to_get_them(tmp_path, run, one_line_error):
    done = run("pipeline.cli", "download", tmp_path / "out", HOME=str(tmp_path), KAGGLE_CONFIG_DIR=str(tmp_path))
    one_line_error(done, "no Kaggle credentials", "kaggle.json", "KAGGLE_USERNAME")
    assert not (tmp_path / "out").exists()


def test_groups_from_the_official_mapping(tmp_path):
    rows = [
        {"subset_img_id": "a", "img_id": "00000013_005.png"},
        {"subset_img_id": "b", "img_id": "00000013_007.png"},
        {"subset_img_id": "c", "img_id": "00000014_000.png"},
    ]
    (tmp_path / "m.json").write_text(json.dumps(rows))
    write_groups(tmp_path / "m.json", tmp_path / GROUPS)
    assert (tmp_path / GROUPS).read_text() == "patientId,groupId\na,00000013\nb,00000013\nc,00000014\n"
    (tmp_path / "m.json").write_text("[{}]")
    with pytest.raises(UserError, match="not a JSON list"):
        write_groups(tmp_path / "m.json", tmp_path / GROUPS)


BIG = f"{IMAGES}/big.dcm"


def make(path, members=(), method=zipfile.ZIP_DEFLATED):
    """Write a whole archive that also has these members."""
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w", method) as file:
        warnings.simplefilter("ignore")  # about a name that occurs twice
        for name, content in ((LABELS, "labels"), (CLASSES, "classes"), *members):
            file.writestr(name, content)
    return path


def patch_index(path, name, offset, value):
    """Write another 4-byte number into the index entry of a member."""
    content = bytearray(path.read_bytes())
    place = content.rindex(b"PK\1\2", 0, content.rindex(name.encode()))
    content[place + offset : place + offset + 4] = struct.pack("<I", value)
    path.write_bytes(content)


def encrypt(path, name):
    content = bytearray(path.read_bytes())
    content[content.rindex(b"PK\1\2", 0, content.rindex(name.encode())) + 8] |= 1
    path.write_bytes(content)


def damage(path, name):
    content = bytearray(path.read_bytes())
    place = content.index(name.encode()) + len(name) + 20
    content[place : place + 8] = b"\xff" * 8
    path.write_bytes(content)


def noise(count):
    return bytes((7 * number * number + number // 3) % 251 for number in range(count))


BROKEN = {
    "cut": (lambda path: path.write_bytes(path.read_bytes()[:-300]), "broken"),
    "cut in the middle": (lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]), "broken"),
    "damaged": (lambda path: damage(path, BIG), "broken"),
    "says less": (lambda path: patch_index(path, BIG, 24, 100), "broken"),
    "says more": (lambda path: patch_index(path, BIG, 24, 200_000), "broken"),
    "wrong CRC": (lambda path: patch_index(path, BIG, 16, 1), "Bad CRC-32"),
    "says too much": (lambda path: patch_index(path, BIG, 20, 2**31), "overlap"),
    "encrypted": (lambda path: encrypt(path, BIG), "is encrypted"),
    "place of another": (lambda path: patch_index(path, BIG, 42, 0), "broken"),
    "place beyond": (lambda path: patch_index(path, BIG, 42, 2**31), "broken"),
}


@pytest.mark.parametrize(("change", "rule"), BROKEN.values(), ids=BROKEN)
def test_a_broken_archive_is_one_line(tmp_path, change, rule):
    path = make(tmp_path / "c.zip", [(BIG, noise(100_000))])
    change(path)
    with pytest.raises(UserError) as caught:
        extract_challenge(path, tmp_path / "out")
    assert str(caught.value).startswith(f"{path}: ")
    assert rule in str(caught.value)
    assert str(caught.value).isprintable()


def test_every_cut_and_many_flipped_bits_are_read_or_refused(tmp_path):
    content = noise(300)
    whole = make(tmp_path / "c.zip", [(BIG, content)]).read_bytes()
    path = tmp_path / "d.zip"
    for place in range(0, len(whole), 3):
        for changed in (whole[:place], whole[:place] + bytes([whole[place] ^ 0x41]) + whole[place + 1 :]):
            path.write_bytes(changed)
            said = ""
            try:
                extract_challenge(path, tmp_path / "out")
            except UserError as error:
                said = str(error)
            assert said.isprintable()
            if not said and (tmp_path / "out" / BIG).exists():
                assert (tmp_path / "out" / BIG).read_bytes() == content
            (tmp_path / "out" / BIG).unlink(missing_ok=True)


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_other_methods_are_refused(tmp_path, method):
    """Readers of other methods return a member as a whole."""
    path = make(tmp_path / "c.zip", [(BIG, bytes(10**6))], method)
    with pytest.raises(UserError, match="only stored and deflated"):
        extract_challenge(path, tmp_path / "out")


def test_names_that_are_there_twice_or_are_no_ids(tmp_path):
    for names, rule in (
        ((f"{IMAGES}/a.dcm", f"{IMAGES}/a.dcm"), "2 times"),
        ((f"{IMAGES}/a.dcm", f"{IMAGES}/x/a.dcm"), "2 times"),
        ((LABELS,), "2 times"),
        ((f"{IMAGES}/a\x1b[31m.dcm",), "plain id"),
        ((f"{IMAGES}/-rf.dcm",), "plain id"),
        ((f"{IMAGES}/.dcm",), "plain id"),
    ):
        path = make(tmp_path / "c.zip", [(name, "x") for name in names])
        with pytest.raises(UserError, match=rule) as caught:
            extract_challenge(path, tmp_path / "out")
        assert str(caught.value).isprintable()


def test_members_are_streamed(tmp_path):
    """A process that may take 150 MB more than it has extracts a member of 300 MB."""
    path = make(tmp_path / "c.zip", [(BIG, bytes(300_000_000))])
    script = (
        "import resource, sys; from pathlib import Path; from pipeline.sources.kaggle import extract_challenge\n"
        "used = int(Path('/proc/self/statm').read_text().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + 150_000_000,) * 2)\n"
        "extract_challenge(Path(sys.argv[1]), Path(sys.argv[2]))\n"
    )
    subprocess.run([sys.executable, "-c", script, path, tmp_path / "out"], check=True, timeout=120)
    assert (tmp_path / "out" / BIG).stat().st_size == 300_000_000


def test_more_than_fits_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    path = make(tmp_path / "c.zip", [(BIG, bytes(1000))])
    monkeypatch.setattr(download, "_MAX_BYTES", 900)
    with pytest.raises(UserError, match="would need more than 900 bytes"):
        extract_challenge(path, tmp_path / "out")
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    usage = download.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(download.shutil, "disk_usage", lambda _: usage._replace(free=500))
    with pytest.raises(UserError, match="needs 1013 bytes there, and 500 are free"):
        extract_challenge(path, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path, monkeypatch):
    """A limit on the file size stands in for a full disk: in both cases, the kernel reports it from write()."""
    path = make(tmp_path / "c.zip", [(BIG, noise(300_000))])
    monkeypatch.setattr(download, "require_credentials", lambda: None)
    monkeypatch.setattr(download, "_fetch", lambda folder: path)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, before[1]))
    try:
        with pytest.raises(OSError, match="too large") as caught:
            download_challenge(tmp_path / "out", None)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert caught.value.filename == str(tmp_path / "out")
    assert {one.name for one in tmp_path.iterdir()} == {"c.zip"}


@pytest.mark.parametrize("text", ["[" * 99_999, "{}", '[{"img_id": "a", "img_id": "b"}]', "[1]", "\xff", ""])
def test_a_mapping_that_is_none(tmp_path, text):
    (tmp_path / "m.json").write_text(text, encoding="latin-1")
    with pytest.raises(UserError, match=r"m\.json: "):
        write_groups(tmp_path / "m.json", tmp_path / GROUPS)
    assert not (tmp_path / GROUPS).exists()
