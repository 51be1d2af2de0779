"""The check that the raw data are as their `.dvc` file recorded them, also when the remote is damaged."""

import json
import shutil
import subprocess
import sys

import pytest
import yaml

from flows import raw_data
from flows.raw_data import VERIFIED, verify_raw_data
from pipeline.errors import UserError
from tests.conftest import make_project, project_environment


def damage_one_file(remote, listing):
    """Flip a bit of a radiograph in the remote; return its name in the data set."""
    files = json.loads((remote / listing[:2] / listing[2:]).read_text())
    chosen = next(one for one in files if one["relpath"].endswith(".dcm"))
    path = remote / chosen["md5"][:2] / chosen["md5"][2:]
    path.chmod(0o644)
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)
    return chosen["relpath"]


def pull(folder):
    shutil.rmtree(folder / "data" / "rsna")
    shutil.rmtree(folder / ".dvc" / "cache")
    command = [sys.executable, "-m", "dvc", "pull", "-q", "data/rsna.dvc"]
    subprocess.run(command, cwd=folder, env=project_environment(folder), check=True)


@pytest.mark.slow
def test_a_damaged_remote_is_noticed(tmp_path, sample, small_params, monkeypatch):
    folder = tmp_path / "one" / "project"
    folder.mkdir(parents=True)
    make_project(folder, sample, small_params)
    monkeypatch.chdir(folder)
    sound = shutil.copytree(folder.parent / "remote", folder.parent / "sound")
    recorded = yaml.safe_load((folder / "data/rsna.dvc").read_text())["outs"][0]["md5"]
    name = damage_one_file(folder.parent / "remote" / "files" / "md5", recorded)
    pull(folder)
    assert raw_data.raw_data_state() == "unchanged"  # according to DVC
    for _ in range(2):
        with pytest.raises(UserError, match=rf"^data/rsna/{name} \(1 in all\): differ from data/rsna.dvc"):
            verify_raw_data()
    shutil.rmtree(folder.parent / "remote")
    sound.rename(folder.parent / "remote")
    pull(folder)
    verify_raw_data()
    assert VERIFIED.read_text().strip() == recorded
    monkeypatch.setattr(raw_data, "changed", lambda *_: pytest.fail("once is enough"))
    verify_raw_data()
