import os
import subprocess

import pytest

from pipeline.provenance import _warn_once, fingerprint, git_state, input_hashes


@pytest.fixture(autouse=True)
def _warn_again():
    _warn_once.cache_clear()


def test_fingerprint_covers_values_names_and_bytes(tmp_path):
    file = tmp_path / "a.npy"
    file.write_bytes(b"1")
    first = fingerprint({"lr": 1}, [file])
    assert first == fingerprint({"lr": 1}, [file])
    assert first != fingerprint({"lr": 2}, [file])
    file.write_bytes(b"2")
    assert first != fingerprint({"lr": 1}, [file])


def test_git_state(tmp_path):
    assert git_state() == {"git_commit": "unknown", "git_dirty": "unknown"}
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b"]
    (tmp_path / "a").write_text("1")
    for command in (["init", "-q"], ["add", "a"], ["commit", "-qm", "one"]):
        subprocess.run([*git, *command], check=True)
    state = git_state()
    assert len(state["git_commit"]) == 40
    assert state["git_dirty"] == "false"
    (tmp_path / "dvc.lock").write_text("DVC writes it while it runs")
    (tmp_path / "reports").mkdir()
    (tmp_path / "reports/metrics.json").write_text("and a stage writes this")
    subprocess.run([*git, "add", "dvc.lock", "reports"], check=True)
    assert git_state()["git_dirty"] == "false"
    (tmp_path / "a").write_text("2")
    assert git_state()["git_dirty"] == "true"


def _repository(folder):
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b"]
    (folder / "a").write_text("1")
    for command in (["init", "-q"], ["add", "a"], ["commit", "-qm", "one"]):
        subprocess.run([*git, *command], check=True)


def test_a_missing_commit_is_said_once(tmp_path, caplog, monkeypatch):
    git_state()
    git_state()
    assert [record.message for record in caplog.records] == [
        "the git commit is not recorded: not a git repository (or any of the parent directories): .git"
    ]
    caplog.clear()
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_state()["git_commit"] == "unknown"
    assert "git cannot be run (FileNotFoundError)" in caplog.text


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files to another user")
def test_another_owners_repository_is_named_with_the_cure(tmp_path, caplog, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    monkeypatch.setenv("LANG", "de_DE.UTF-8")
    _repository(tmp_path)
    for path in (tmp_path, tmp_path / ".git"):
        os.chown(path, 12345, 12345)
    assert git_state()["git_commit"] == "unknown"
    assert f"`git config --global --add safe.directory {tmp_path}` allows it" in caplog.text
    subprocess.run(["git", "config", "--global", "--add", "safe.directory", str(tmp_path)], check=True)
    assert len(git_state()["git_commit"]) == 40


def test_input_hashes_name_the_data_and_not_the_outputs(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data/rsna.dvc").write_text("outs:\n- md5: aa.dir\n  path: rsna\n")
    (tmp_path / "dvc.lock").write_text(
        "stages:\n  split:\n    outs:\n    - path: data/splits.csv\n      md5: bb\n"
        "  train:\n    outs:\n    - path: models/model.json\n      md5: cc\n"
    )
    assert input_hashes("data/rsna") == {"data/rsna": "aa.dir", "data/splits.csv": "bb"}
    # A folder without a record has no hash, least of all that of another folder.
    assert input_hashes("/mnt/disk") == {"data/splits.csv": "bb"}
    with (tmp_path / "dvc.lock").open("a") as lock:
        lock.write("  preprocess:\n    deps:\n    - path: /mnt/disk\n      md5: dd.dir\n")
    assert input_hashes("/mnt/other/../disk") == {"/mnt/other/../disk": "dd.dir", "data/splits.csv": "bb"}
    assert input_hashes("data/rsna") == {"data/rsna": "aa.dir", "data/splits.csv": "bb"}
