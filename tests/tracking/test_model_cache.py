"""Models are fetched once and whole, and are deleted when superseded; in a real store, by real processes."""

import json
import signal
import stat
import subprocess
import sys
from pathlib import Path

import mlflow
import pytest

from pipeline.errors import UserError
from pipeline.tracking import MODEL_NAME, download_model, tracking_uri
from pipeline.tracking.model_cache import CACHE

pytestmark = pytest.mark.slow  # MLflow is slow to import, and each process imports it

CHAMPION = f"models:/{MODEL_NAME}@champion"


@pytest.fixture
def register(tmp_path):
    """Register a version whose weights are ``content``, and make it the champion; return its number."""
    mlflow.set_tracking_uri(tracking_uri())
    client = mlflow.MlflowClient()
    experiment = client.create_experiment("e", artifact_location=str(tmp_path / "artifacts"))
    client.create_registered_model(MODEL_NAME)

    def make(content):
        run = client.create_run(experiment)
        folder = tmp_path / "made" / content
        folder.mkdir(parents=True)
        (folder / "model.json").write_text("{}")
        (folder / "model.safetensors").write_text(content)
        client.log_artifacts(run.info.run_id, str(folder), "model/artifacts/models")
        source = f"{run.info.artifact_uri}/model"
        version = client.create_model_version(MODEL_NAME, source, run.info.run_id).version
        client.set_registered_model_alias(MODEL_NAME, "champion", version)
        return version

    return make


@pytest.fixture
def scratch(tmp_path, monkeypatch):
    """Set TMPDIR to a folder of this test's own."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    return folder


FETCH = "import sys; from pipeline.tracking import download_model; p = download_model(sys.argv[1]);"


def start(code, uri=CHAMPION):
    return subprocess.Popen(
        [sys.executable, "-c", FETCH + code, uri], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def fetched(uri=CHAMPION):
    """Return the weights that another process gets."""
    process = start("print((p / 'model.safetensors').read_text())", uri)
    out, error = process.communicate()
    assert process.returncode == 0, error
    return out.strip()


def entries():
    return sorted(path.name for path in CACHE.iterdir() if not path.name.startswith(".") and path.is_dir())


def test_a_version_is_fetched_once_and_goes_when_its_alias_moves(register, tmp_path, scratch):
    register("one")
    for _ in range(2):
        assert fetched() == "one"
    (entry,) = entries()
    assert stat.S_IMODE(CACHE.stat().st_mode) == 0o700
    (tmp_path / "artifacts").rename(tmp_path / "away")  # the version is not fetched again
    assert fetched() == "one"
    (tmp_path / "away").rename(tmp_path / "artifacts")
    register("two")
    assert fetched() == "two"
    assert len(entries()) == 1
    assert entries() != [entry]
    assert list(scratch.iterdir()) == []
    assert not list(CACHE.glob(".pneumoflow-*"))


def test_what_is_damaged_is_fetched_again(register, caplog):
    register("one")
    path = download_model(CHAMPION)
    for damage in (
        lambda: (path / "model.safetensors").write_text("other"),
        lambda: (path / "model.safetensors").unlink(),
        lambda: (path / "more").write_text("planted"),
        lambda: (path / "digests.json").write_text("[[["),
        lambda: (path / "digests.json").unlink(),
    ):
        damage()
        caplog.clear()
        assert (download_model(CHAMPION) / "model.safetensors").read_text() == "one"
        assert "damaged; it is fetched again" in caplog.text
        assert sorted(one.name for one in path.iterdir()) == ["digests.json", "model.json", "model.safetensors"]
    caplog.clear()
    (CACHE / "uses.json").write_bytes(b"\0\0")
    download_model(CHAMPION)
    assert caplog.text == ""
    assert list(json.loads((CACHE / "uses.json").read_text())) == [CHAMPION]


@pytest.mark.long
def test_a_model_in_use_stays_until_its_process_ends(register):
    register("one")
    process = start("print(flush=True); import time; time.sleep(300)")
    assert process.stdout.readline() == "\n", process.stderr.read()
    try:
        register("two")
        assert fetched() == "two"
        assert len(entries()) == 2
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert fetched() == "two"
    assert len(entries()) == 1


def test_two_stores_with_the_same_numbers(register, tmp_path, monkeypatch):
    register("one")
    assert (download_model(CHAMPION) / "model.safetensors").read_text() == "one"
    (tmp_path / "mlflow.db").unlink()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/another.db")
    mlflow.set_tracking_uri(tracking_uri())
    client = mlflow.MlflowClient()
    experiment = client.create_experiment("e", artifact_location=str(tmp_path / "others"))
    client.create_registered_model(MODEL_NAME)
    run = client.create_run(experiment)
    folder = tmp_path / "b"
    folder.mkdir()
    (folder / "model.json").write_text("{}")
    (folder / "model.safetensors").write_text("of another store")
    client.log_artifacts(run.info.run_id, str(folder), "model")
    client.create_model_version(MODEL_NAME, f"{run.info.artifact_uri}/model", run.info.run_id)
    assert (download_model(f"models:/{MODEL_NAME}/1") / "model.safetensors").read_text() == "of another store"


@pytest.mark.long
def test_processes_that_start_at_once_get_the_same_whole_model(register):
    register("one")
    processes = [start("print((p / 'model.safetensors').read_text())") for _ in range(3)]
    outputs = [process.communicate() for process in processes]
    assert [out.strip() for out, _ in outputs] == ["one"] * 3, outputs
    assert len(entries()) == 1


SLOW_COPY = """
import shutil, sys, time
from pipeline.tracking import download_model
real = shutil.move
def slow(*args, **kwargs):
    print("moving", flush=True)
    time.sleep(300)
shutil.move = slow
download_model(sys.argv[1])
"""


def test_a_kill_while_fetching_leaves_nothing_half(register):
    register("one")
    process = subprocess.Popen([sys.executable, "-c", SLOW_COPY, CHAMPION], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "moving\n"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert entries() == []
    assert list(CACHE.glob(".pneumoflow-*"))
    assert fetched() == "one"
    assert not list(CACHE.glob(".pneumoflow-*"))


@pytest.mark.long
def test_without_a_cache_and_without_a_version_the_folder_goes_with_the_process(register, tmp_path, scratch):
    register("one")
    local = tmp_path / "made/one"
    assert fetched(str(local)) == "one"
    assert not CACHE.exists()
    CACHE.parent.write_text("in the way")
    assert fetched() == "one"
    assert list(scratch.iterdir()) == []
    assert CACHE.parent.read_text() == "in the way"


def test_errors(register):
    register("one")
    for uri in (f"models:/{MODEL_NAME}@nobody", f"models:/{MODEL_NAME}/9", "models:/other@champion", "runs:/0/model"):
        with pytest.raises(UserError, match="no such model"):
            download_model(uri)
    assert not CACHE.exists() or entries() == []
    Path("plain").mkdir()
    with pytest.raises(UserError, match=r"it has no model\.json"):
        download_model("plain")
    assert list(Path("plain").iterdir()) == []
