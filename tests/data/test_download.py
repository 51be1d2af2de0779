import json
import zipfile

import pytest

from pipeline.data.annotations import CLASSES, GROUPS, IMAGES, LABELS
from pipeline.data.download import extract_challenge, write_groups
from pipeline.errors import UserError


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
