import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import yaml

from tests.conftest import project_environment


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def wait_for_server(url, process, seconds=120):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        assert process.poll() is None, f"{url}: the server ended"
        try:
            urllib.request.urlopen(url, timeout=2).close()
        except OSError:
            time.sleep(0.3)
        else:
            return
    pytest.fail(f"{url} does not answer")


@pytest.fixture(scope="session")
def prefect_server(tmp_path_factory):
    """Start a real Prefect server on loopback; yield its API URL."""
    port = free_port()
    home = tmp_path_factory.mktemp("prefect")
    process = subprocess.Popen(
        [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)],
        env={**os.environ, "PREFECT_HOME": str(home), "PREFECT_SERVER_ANALYTICS_ENABLED": "false"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    wait_for_server(f"http://127.0.0.1:{port}/api/health", process)
    yield f"http://127.0.0.1:{port}/api"
    process.terminate()
    process.wait(30)


@pytest.fixture(autouse=True)
def _no_deployments(request):
    """Delete all deployments: tests in several folders share the server, and deploying over another folder fails."""
    if "prefect_server" not in request.fixturenames:
        return
    server = request.getfixturevalue("prefect_server")
    listing = urllib.request.Request(f"{server}/deployments/filter", b"{}", {"Content-Type": "application/json"})
    for one in json.loads(ask_until_answered(listing)):
        ask_until_answered(urllib.request.Request(f"{server}/deployments/{one['id']}", method="DELETE"))


def ask_until_answered(request, seconds=60):
    """Return the body of the answer; a server whose database is locked answers 503 for a moment."""
    end = time.monotonic() + seconds
    while True:
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return answer.read()
        except urllib.error.HTTPError as error:
            if error.code != 503 or time.monotonic() > end:
                raise
        time.sleep(0.5)


def link_environment(folder):
    """Give a folder the .venv that runs the tests, which `make` takes for up to date."""
    (folder / ".venv").mkdir()
    for entry in Path(sys.prefix).iterdir():
        if entry.name != "installed":
            (folder / ".venv" / entry.name).symlink_to(entry)
    (folder / ".venv/installed").touch()


@pytest.fixture
def copy(trained, tmp_path):
    """Copy the trained project; the copy makes an MLflow store of its own."""
    folder = Path(shutil.copytree(trained[0], tmp_path / "copy" / "project"))
    (folder / "mlflow.db").unlink()
    shutil.copytree(trained[0].parent / "remote", tmp_path / "copy" / "remote")
    return folder


@pytest.fixture
def edit():
    def change(folder, section, **values):
        params = yaml.safe_load((folder / "params.yaml").read_text())
        params[section] |= values
        (folder / "params.yaml").write_text(yaml.safe_dump(params))

    return change


@pytest.fixture
def call(prefect_server):
    """Run a command in a project; the shared Prefect server saves each flow the start of its own."""

    def run(folder, *arguments):
        return subprocess.run(
            [sys.executable, "-m", *arguments],
            cwd=folder,
            env=project_environment(folder, PREFECT_API_URL=prefect_server),
            capture_output=True,
            text=True,
            timeout=280,
        )

    return run
