"""Processes of an account without a home or a name, or with a home that cannot be written."""

import os
import subprocess
import sys

import pytest

from pipeline.account import provide_account
from tests.conftest import REPOSITORY

_NAMELESS = """
import os, pwd
def nobody(uid):
    raise KeyError(f"getpwuid(): uid not found: {uid}")
pwd.getpwuid = nobody
for name in ("HOME", "USER", "LOGNAME", "LNAME", "USERNAME"):
    os.environ.pop(name, None)
import flows.training, pipeline.tracking
print(os.environ['USER'])
"""


@pytest.mark.parametrize("home", ["", "/nonexistent/home", "not/there"])
def test_a_home_that_is_not_there_is_replaced(monkeypatch, tmp_path, home):
    monkeypatch.setenv("HOME", home)
    monkeypatch.delenv("PREFECT_HOME", raising=False)
    provide_account()
    assert os.environ["HOME"] == str(tmp_path / ".pneumoflow" / "home")
    assert "PREFECT_HOME" not in os.environ


def test_a_home_that_is_there_stays(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    provide_account()
    assert os.environ["HOME"] == str(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_home_that_can_only_be_read_keeps_its_credentials(monkeypatch, tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("PREFECT_HOME", raising=False)
    real = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: str(path) != str(home) and real(path, mode))
    provide_account()
    assert os.environ["HOME"] == str(home)
    assert os.environ["PREFECT_HOME"] == str(tmp_path / ".pneumoflow" / "home" / ".prefect")


def test_without_a_folder_that_can_be_written_the_temporary_one_is_used(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", "/nonexistent")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    real = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: path != "." and real(path, mode))
    provide_account()
    assert os.environ["HOME"] == str(tmp_path)


_SENDS = """
import flows, pipeline.tracking
from mlflow.telemetry.utils import is_telemetry_disabled
from prefect._internal.analytics.enabled import is_telemetry_enabled
print(is_telemetry_disabled(), is_telemetry_enabled())
"""


@pytest.mark.parametrize("own", [{}, {"DO_NOT_TRACK": "1"}])
def test_no_usage_data_are_sent(own):
    """Run outside pytest and CI, because there both libraries send nothing by themselves."""
    names = ("PATH", "HOME")
    env = {name: os.environ[name] for name in names if name in os.environ} | {"PYTHONPATH": str(REPOSITORY)} | own
    done = subprocess.run([sys.executable, "-c", _SENDS], env=env, capture_output=True, text=True, timeout=120)
    assert done.stdout == "True False\n", done.stderr


def test_mlflow_is_silent_where_there_is_no_git(tmp_path):
    code = "import pipeline, sys; from mlflow.utils.git_utils import get_git_commit as f; print(f(sys.argv[0]))"
    env = {"PATH": str(tmp_path), "PYTHONPATH": str(REPOSITORY), "HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=120)
    assert done.stdout == "None\n"
    assert len(done.stderr.splitlines()) <= 1, done.stderr


def test_a_user_id_without_a_name_can_start_everything(tmp_path):
    """Run MLflow's and Prefect's own imports, which ended in the traceback."""
    env = {key: value for key, value in os.environ.items() if not key.startswith("PREFECT_")}
    done = subprocess.run(
        [sys.executable, "-c", _NAMELESS],
        env={**env, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"user-{os.getuid()}\n"
    assert (tmp_path / ".pneumoflow" / "home").is_dir()
