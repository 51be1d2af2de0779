"""Data on another disk: DVC notices their changes, and a run records the hash of the data that it used."""

import shutil
import subprocess
import sys

import pytest
import yaml

from flows.raw_data import raw_data_state
from pipeline.assembly.run_identity import data_version, run_tags
from pipeline.errors import UserError
from pipeline.params import PARAMS_FILE, load_params
from tests.conftest import project_environment

pytestmark = pytest.mark.slow


@pytest.fixture
def dvc(project, monkeypatch):
    monkeypatch.chdir(project)

    def call(*arguments):
        done = subprocess.run(
            [sys.executable, "-m", "dvc", *arguments],
            cwd=project, env=project_environment(project), capture_output=True, text=True, timeout=200, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return call


def set_folder(place):
    values = yaml.safe_load(PARAMS_FILE.read_text())
    values["data"]["dir"] = str(place)
    PARAMS_FILE.write_text(yaml.safe_dump(values))
    return load_params()


def test_another_disk(project, dvc, tmp_path):
    disk = tmp_path / "a disk"
    shutil.copytree(project / "data/rsna", disk)
    recorded = yaml.safe_load((project / "data/rsna.dvc").read_text())["outs"][0]["md5"]
    labels = (disk / "stage_2_train_labels.csv").read_text().splitlines(keepends=True)
    (disk / "stage_2_train_labels.csv").write_text("".join([labels[0], *reversed(labels[1:])]))
    params = set_folder(disk)
    assert raw_data_state() == "unchanged"
    dvc("repro", "preprocess")
    used = data_version(params).digest
    assert used.endswith(".dir")
    assert used != recorded
    tags = run_tags(params)
    assert tags["dvc.raw_data"] == used
    assert "dvc.data/rsna" not in tags
    assert "up to date" in dvc("status", "preprocess")
    (disk / "stage_2_train_labels.csv").write_text("".join(labels))
    assert "modified" in dvc("status", "preprocess")
    # With the folder that the project came with, the hash is that folder's own again.
    params = set_folder("data/rsna")
    dvc("repro", "preprocess")
    assert data_version(params).digest == recorded == run_tags(params)["dvc.data/rsna"]


def test_a_link_is_one_line(project, dvc, tmp_path):
    (project / "data/rsna").rename(tmp_path / "disk")
    (project / "data/rsna").symlink_to(tmp_path / "disk")
    with pytest.raises(UserError, match=f"data/rsna: a symbolic link.* set data.dir to {tmp_path / 'disk'}"):
        raw_data_state()
