"""Fixtures of all tests. The data are made here, are small, and come from no patient."""

import copy
import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import hypothesis
import pytest
import yaml

import pipeline  # noqa: F401 # before torch: it sets environment variables that OpenMP reads

os.environ.update(DVC_NO_ANALYTICS="1", NO_ALBUMENTATIONS_UPDATE="1", PREFECT_SERVER_ANALYTICS_ENABLED="false")

import torch

from pipeline.data.reader import Reader
from pipeline.sources.sample import make_sample

# In the background of a script, pytest ignores SIGINT, and every process that the tests interrupt would inherit this.
signal.signal(signal.SIGINT, signal.default_int_handler)
# Under nohup, pytest ignores SIGHUP; a handler of ours is not inherited, and keeps pytest alive.
if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
    signal.signal(signal.SIGHUP, lambda *_: None)

# A full disk cache or a busy machine is no fault of an example that took longer.
hypothesis.settings.register_profile("no deadline", deadline=None)
hypothesis.settings.load_profile("no deadline")

REPOSITORY = Path(__file__).resolve().parent.parent


def pytest_collection_modifyitems(items):
    needing = [item for item in items if item.get_closest_marker("gpu")]
    if needing and not torch.cuda.is_available():
        for item in needing:
            item.add_marker(pytest.mark.skip(reason="needs CUDA"))


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    """Work in the test's own folder, so that no test writes into the repository, whatever it runs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")


@pytest.fixture(scope="session")
def repository():
    return REPOSITORY


@pytest.fixture(scope="session")
def sample(tmp_path_factory):
    """Make a data set of 60 studies of 128 pixels; read only."""
    folder = tmp_path_factory.mktemp("sample") / "rsna"
    make_sample(folder, studies=60, size=128, seed=5, opacity_fraction=0.5, labels=None, workers=1)
    return folder


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory):
    """Make MLflow's database with empty tables, once, because making them takes seconds. Read only."""
    import mlflow

    folder = tmp_path_factory.mktemp("store")
    mlflow.MlflowClient(f"sqlite:///{folder}/mlflow.db").search_experiments()
    return folder / "mlflow.db"


@pytest.fixture
def mlflow_store(_own_folder, empty_store, tmp_path):
    """Copy `empty_store` for a test, whose runs go there."""
    return Path(shutil.copy(empty_store, tmp_path / "mlflow.db"))


@pytest.fixture
def rsna(sample, tmp_path):
    """Copy the sample to data/rsna, for a test to break."""
    return Path(shutil.copytree(sample, tmp_path / "data" / "rsna"))


@pytest.fixture
def small_disk(tmp_path):
    """Mount a real file system of 1 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("needs the right to mount a file system")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


@pytest.fixture(scope="session")
def _small_params():
    values = yaml.safe_load((REPOSITORY / "params.yaml").read_text())
    values["preprocess"] |= {"image_size": 128, "shard_size": 16, "workers": 1}
    values["split"]["fractions"] = {"train": 0.6, "val": 0.2, "test": 0.2}
    values["model"] |= {"backbone": "resnet10t", "weights": "none", "frozen_stages": 0, "dropout": 0.0}
    values["model"] |= {"fpn_channels": 32, "head_convs": 1}
    values["train"] |= {"epochs": 2, "lr": 0.0012, "log_every_steps": 1, "precision": "32-true"}
    values["evaluate"] |= {"bootstrap_draws": 100, "score_thresh": 0.01}
    values["promote"]["floor"] = 0.0  # models that train in seconds find little
    return values


@pytest.fixture
def small_params(_small_params):
    """Return the shipped params, shrunk to a model that trains in seconds; a copy that a test may change."""
    return copy.deepcopy(_small_params)


@pytest.fixture(scope="session")
def reader():
    with Reader(1, 60) as made:
        yield made


@pytest.fixture
def write_params(tmp_path):
    def write(values, path=tmp_path / "params.yaml"):
        path.write_text(yaml.safe_dump(values))
        return path

    return write


@pytest.fixture
def run():
    """Run a command of ours as a user would; return the finished process."""

    def call(*arguments, cwd=None, **env):
        return subprocess.run(
            [sys.executable, "-m", *map(str, arguments)],
            cwd=cwd,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY), "COLUMNS": "200", **env},
            capture_output=True,
            text=True,
            timeout=280,
        )

    return call


@pytest.fixture
def one_line_error():
    """Assert that a process ended as it must on bad input, and return the error line."""

    def check(done, *words):
        assert done.returncode == 1, done.stderr
        assert "Traceback" not in done.stderr + done.stdout
        lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1, done.stderr
        for word in words:
            assert str(word) in lines[0], lines[0]
        return lines[0]

    return check


def make_project(folder, sample, params):
    """Make a clone of the repository with a small data set and params, and its DVC remote beside it."""
    for name in ("pipeline", "flows"):
        shutil.copytree(REPOSITORY / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("dvc.yaml", "prefect.yaml", "pyproject.toml", ".dvcignore", ".gitignore"):
        shutil.copy(REPOSITORY / name, folder / name)
    (folder / "params.yaml").write_text(yaml.safe_dump(params))
    shutil.copytree(sample, folder / "data" / "rsna")
    git = ["git", "-c", "user.name=test", "-c", "user.email=test@localhost"]
    dvc = [sys.executable, "-m", "dvc"]
    for command in (
        [*git, "init", "-q"],
        [*dvc, "init", "-q"],
        [*dvc, "remote", "add", "-q", "-d", "local", "../remote"],
        [*dvc, "add", "-q", "data/rsna"],
        [*dvc, "push", "-q", "data/rsna.dvc"],
        [*git, "add", "."],
        [*git, "commit", "-qm", "start"],
    ):
        subprocess.run(command, cwd=folder, check=True, capture_output=True)
    return folder


def project_environment(folder, **more):
    """Return the environment that a user's shell would have in that folder: nothing of the tests' own."""
    own = {key: value for key, value in os.environ.items() if not key.startswith(("MLFLOW_", "PREFECT_", "PYTHONPATH"))}
    home = folder.parent / "prefect"
    return {
        **own,
        "PREFECT_HOME": str(home),
        "DVC_NO_ANALYTICS": "1",
        "PATH": f"{Path(sys.executable).parent}:{own['PATH']}",
        **more,
    }


@pytest.fixture
def project(tmp_path, sample, small_params):
    """Make a project for one test."""
    folder = tmp_path / "project"
    folder.mkdir()
    return make_project(folder, sample, small_params)


@pytest.fixture(scope="session")
def trained(tmp_path_factory, sample, _small_params):
    """Run the training flow once in a project; return (folder, finished process). Tests must not change it."""
    folder = tmp_path_factory.mktemp("trained") / "project"
    folder.mkdir()
    make_project(folder, sample, copy.deepcopy(_small_params))
    # As on a fresh clone, the data come from the remote alone.
    shutil.rmtree(folder / "data" / "rsna")
    shutil.rmtree(folder / ".dvc" / "cache")
    done = subprocess.run(
        [sys.executable, "-m", "flows.training"],
        cwd=folder,
        env=project_environment(folder),
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder, done


@pytest.fixture(scope="session")
def _tiny_model(tmp_path_factory):
    from pipeline.data.settings import Preprocessing
    from pipeline.delivery.model_config import FORMAT_VERSION, ModelConfig
    from pipeline.delivery.model_file import save_model
    from pipeline.detection.retinanet import RetinaNet
    from tests.detection.settings import POST_PROCESSING, TINY

    torch.manual_seed(0)
    config = ModelConfig(
        format_version=FORMAT_VERSION, classes=("lung opacity",), architecture=TINY,
        preprocessing=Preprocessing(128, 2.0, (8, 8), ("clahe",)),
        postprocessing=replace(POST_PROCESSING, score_thresh=0.001, nms_thresh=0.3),
        operating_threshold=0.001, best_epoch=0, val_map=0.1,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("tiny") / "models"
    save_model(folder, RetinaNet(TINY), config)
    return folder


@pytest.fixture
def tiny_model(_tiny_model, tmp_path):
    """Copy the folder of a model that was never trained, for a test to break."""
    return Path(shutil.copytree(_tiny_model, tmp_path / "tiny"))


@pytest.fixture
def write_config():
    """Change the ``model.json`` of a folder; return the folder."""

    def write(folder, change):
        path = folder / "model.json"
        config = json.loads(path.read_text())
        change(config)
        path.write_text(json.dumps(config))
        return folder

    return write
