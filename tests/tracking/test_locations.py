"""Files stay with their database when they are moved, copied or made from a copy, in folders of any name."""

import shutil
import subprocess
import sys
from pathlib import Path

import mlflow
import pytest

from pipeline.errors import UserError
from pipeline.tracking import relocate, tracked_run
from pipeline.tracking.place import project_folder, tracking_uri
from tests.conftest import REPOSITORY

TEXT = "of the run"


def write_run(run_id=None):
    with tracked_run(run_id, {}) as run:
        run.log_text(TEXT, "note.txt")
    return run.run_id


def read_run(run_id):
    return Path(mlflow.MlflowClient(tracking_uri()).download_artifacts(run_id, "note.txt")).read_text()


@pytest.fixture
def project(tmp_path, monkeypatch):
    """Make a folder with a store: ``project(name)`` makes it the working folder and returns it."""

    def enter(name):
        folder = tmp_path / name
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "mlflow.db").exists():
            shutil.copy(tmp_path / "mlflow.db", folder)
        monkeypatch.chdir(folder)
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
        return folder

    return enter


def notes(folder):
    return [path for path in folder.rglob("note.txt") if path.read_text() == TEXT]


SCRIPT = """
from pathlib import Path
from pipeline.tracking import open_client, tracked_run
with tracked_run(None, {}) as run:
    run.log_text("of the run", "note.txt")
print(Path(open_client().download_artifacts(run.run_id, "note.txt")).read_text())
"""


@pytest.mark.parametrize("name", ["mit Umlaut äö", "50% a%20b", "what? no #1;"])
def test_folders_of_any_name(project, name, tmp_path, monkeypatch):
    folder = project(name)
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == TEXT, done.stderr
    assert [path.is_relative_to(folder / "mlruns") for path in notes(tmp_path)] == [True]
    assert {path.name for path in tmp_path.iterdir()} == {name, "mlflow.db"}


def test_a_folder_that_was_moved(project, monkeypatch, tmp_path, caplog):
    first = project("old")
    run = write_run()
    monkeypatch.chdir(tmp_path)
    first.rename(tmp_path / "new")
    folder = project("new")
    other = write_run()
    assert "MLflow's files have moved with their database" in caplog.text
    assert (read_run(run), read_run(other)) == (TEXT, TEXT)
    assert len(notes(folder)) == 2
    assert not first.exists()
    caplog.clear()
    write_run()
    assert "have moved" not in caplog.text


def test_a_folder_that_was_copied(project, monkeypatch, tmp_path):
    first = project("old")
    run = write_run()
    shutil.copytree(first, tmp_path / "copy")
    folder = project("copy")
    write_run()
    assert (len(notes(first)), len(notes(folder))) == (1, 2)
    shutil.rmtree(first)
    assert read_run(run) == TEXT


def test_a_link_to_a_folder_is_that_folder(project, tmp_path, monkeypatch, caplog):
    folder = project("real")
    write_run()
    (tmp_path / "link").symlink_to(folder)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/link/mlflow.db")
    write_run()
    assert len(notes(folder)) == 2
    assert "have moved" not in caplog.text


def test_a_store_whose_first_use_is_in_a_copy(project, monkeypatch):
    """Write a run in a copy, as `dvc exp run --queue` does: the copy is deleted, its run stays."""
    folder = project("p")
    copy = folder / ".dvc/tmp/exps/tmpabc"
    copy.mkdir(parents=True)
    monkeypatch.chdir(copy)
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert project_folder() == folder
    assert tracking_uri() == f"sqlite:///{folder}/mlflow.db"
    run = write_run()
    project("p")
    shutil.rmtree(copy)
    assert read_run(run) == TEXT


def test_a_store_that_a_copy_has_spoiled(project, client):
    folder = project("p")
    gone = folder / ".dvc/tmp/exps/tmpabc/mlruns/1"
    own = mlflow.MlflowClient(tracking_uri())
    experiment = own.create_experiment("rsna-pneumonia", str(gone))
    lost = own.create_run(experiment).info.run_id
    write_run()
    assert len(notes(folder / "mlruns")) == 1
    assert not gone.exists()
    assert own.get_run(lost).info.artifact_uri.startswith(str(folder / "mlruns"))


def test_files_on_a_disk_that_is_not_there_are_not_made_anew(project, tmp_path, run):
    folder = project("p")
    disk = tmp_path / "disk"
    own = mlflow.MlflowClient(tracking_uri())
    experiment = own.create_experiment("rsna-pneumonia", str(disk / "files"))
    run_command, run = run, write_run()
    assert len(notes(disk)) == 1
    disk.rename(tmp_path / "unmounted")
    with pytest.raises(UserError, match="is not there .*`pneumoflow doctor --relocate`"):
        write_run()
    assert not disk.exists()
    (tmp_path / "unmounted").rename(disk)
    assert read_run(run) == TEXT
    shutil.rmtree(disk)
    done = run_command("pipeline.cli", "doctor", "--relocate", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "file locations were set" in done.stdout
    assert "champion: none yet" in done.stdout
    assert relocate(tracking_uri()) == 0
    write_run()
    assert len(notes(folder / "mlruns")) == 1
    assert own.get_experiment(experiment).artifact_location == str(folder / "mlruns/rsna-pneumonia")


def test_only_a_file_can_be_relocated():
    with pytest.raises(UserError, match="only an SQLite store's file") as caught:
        relocate("http://me:GeHeim1@localhost")
    assert "GeHeim1" not in str(caught.value)


def test_a_damaged_database_is_one_line(project):
    (project("p") / "mlflow.db").write_bytes(b"no database" * 1000)
    with pytest.raises(UserError, match="cannot be used as MLflow's store"):
        write_run()
