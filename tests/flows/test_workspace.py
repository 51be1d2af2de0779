"""The clone that a worker keeps, and runs on another host whose results come back into any clone."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from filelock import FileLock

from flows.deployments import folder_of
from flows.workspace import REPOSITORY, STEP, WORKSPACE, Source, deployed_source, enter, update
from pipeline.errors import UserError
from tests.conftest import project_environment
from tests.flows.test_deployments import finished_run, stop


def git(folder, *arguments):
    command = ["git", "-c", "user.name=test", "-c", "user.email=test@localhost", *arguments]
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout.strip()


def commit(folder, **files):
    for name, content in files.items():
        path = folder / name.replace("__", "/").replace("_", ".")
        path.parent.mkdir(exist_ok=True)
        path.write_text(content)
    git(folder, "add", ".")
    git(folder, "commit", "-qm", "a change")
    git(folder, "push", "-q", "origin", "HEAD")
    return git(folder, "rev-parse", "HEAD")


@pytest.fixture
def clone(tmp_path):
    """Make a repository and a clone of it with one commit; return the clone."""
    git(tmp_path, "init", "-q", "--bare", "origin")
    git(tmp_path, "clone", "-q", "origin", "deployer")
    commit(tmp_path / "deployer", params_yaml="seed: 1")
    return tmp_path / "deployer"


@pytest.fixture
def source(clone, monkeypatch):
    monkeypatch.chdir(clone)
    return deployed_source()


def test_without_the_variable_the_deployed_folder_is_used(source, clone, monkeypatch):
    monkeypatch.delenv(WORKSPACE, raising=False)
    assert enter(str(source)) == {"directory": str(clone)}
    elsewhere = Source("/nowhere/project", source.repository, source.commit)
    with pytest.raises(UserError, match=f"/nowhere/project: not on this machine; set {WORKSPACE} to a folder"):
        enter(str(elsewhere))


def test_a_deployment_of_another_version_is_no_folders():
    step = {STEP: {"source": "a folder"}}
    assert folder_of(SimpleNamespace(tags=[], pull_steps=[step])) is None
    step[STEP]["source"] = str(Source("/srv/project", "", ""))
    assert folder_of(SimpleNamespace(tags=[], pull_steps=[step])) == "/srv/project"


def test_the_clone_follows_the_commit_and_keeps_what_runs_left(source, clone, tmp_path, monkeypatch):
    place = tmp_path / "worker"
    monkeypatch.setenv(WORKSPACE, str(place))
    assert enter(str(source)) == {"directory": str(place)}
    assert (place / "params.yaml").read_text() == "seed: 1"
    left = place / ".dvc/cache/files"
    left.mkdir(parents=True)
    (place / "dvc.lock").write_text("a run's own")
    later = commit(clone, params_yaml="seed: 2")
    enter(str(Source(source.folder, source.repository, later)))
    assert (place / "params.yaml").read_text() == "seed: 2"
    assert (place / "dvc.lock").read_text() == "a run's own"
    assert left.is_dir()
    enter(str(source))
    assert (place / "params.yaml").read_text() == "seed: 1"


def test_results_in_a_commit_replace_those_of_the_clone_only_if_they_are_new(source, clone, tmp_path):
    place = tmp_path / "worker"
    first = commit(clone, dvc_lock="one", reports__headline_json="{}")
    update(place, source.repository, first)
    (place / "dvc.lock").write_text("a run's own")
    update(place, source.repository, commit(clone, params_yaml="seed: 2"))
    assert (place / "dvc.lock").read_text() == "a run's own"
    update(place, source.repository, commit(clone, dvc_lock="two"))
    assert (place / "dvc.lock").read_text() == "two"
    assert (place / "reports/headline.json").read_text() == "{}"


def test_a_run_at_work_keeps_its_code(source, clone, tmp_path):
    place = tmp_path / "worker"
    update(place, source.repository, source.commit)
    later = commit(clone, params_yaml="seed: 2")
    with FileLock(place / ".pneumoflow.lock"):
        update(place, source.repository, later)
        assert (place / "params.yaml").read_text() == "seed: 1"
    update(place, source.repository, later)
    assert (place / "params.yaml").read_text() == "seed: 2"


def test_what_cannot_be_fetched_is_one_line(source, clone, tmp_path):
    place = tmp_path / "worker"
    (clone / "params.yaml").write_text("seed: 3")
    git(clone, "commit", "-qam", "not pushed")
    unknown = git(clone, "rev-parse", "HEAD")
    with pytest.raises(UserError, match=f"origin: has no commit {unknown}; push it, and deploy again"):
        update(place, source.repository, unknown)
    with pytest.raises(UserError, match="git fetch in .*nowhere.* does not") as caught:
        update(place, str(tmp_path / "nowhere"), "0" * 40)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=f"without a remote repository; set {REPOSITORY}"):
        update(place, "", source.commit)


@pytest.mark.parametrize(
    ("url", "stored"),
    [
        ("https://me:GeHeim1@host.org/team/project.git", "https://host.org/team/project.git"),
        ("https://GeHeim1@host.org:8443/p", "https://host.org:8443/p"),
        ("ssh://git@host.org/p", "ssh://git@host.org/p"),
        ("git@host.org:team/p.git", "git@host.org:team/p.git"),
    ],
)
def test_no_password_is_deployed(clone, url, stored, monkeypatch):
    git(clone, "remote", "set-url", "origin", url)
    monkeypatch.chdir(clone)
    assert deployed_source().repository == stored


@pytest.mark.slow
def test_a_worker_elsewhere_trains_and_anyone_restores_its_run(project, tmp_path, prefect_server, monkeypatch):
    """Deploy from one folder, run on a worker with a workspace of its own, restore into a third clone."""
    origin, workspace, third = tmp_path / "origin", tmp_path / "host/workspace", tmp_path / "third"
    monkeypatch.setenv("HOME", str(tmp_path))
    git(project, "config", "receive.denyCurrentBranch", "ignore")
    subprocess.run(
        [sys.executable, "-m", "dvc", "remote", "modify", "local", "url", str(tmp_path / "remote")],
        cwd=project, check=True,
    )  # fmt: skip
    with (project / "flows/showing.py").open("a") as file:
        file.write('\nprint("the code of the commit")\n')
    git(project, "commit", "-qam", "the remote's absolute path, and code that shows itself")
    git(tmp_path, "clone", "-q", "--bare", str(project), str(origin))
    git(project, "remote", "add", "origin", str(origin))
    store = {"MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db", "PREFECT_API_URL": prefect_server}

    def call(folder, *arguments, **more):
        environment = project_environment(folder, **store, **more)
        done = subprocess.run(
            [sys.executable, "-m", *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=280
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    call(project, "prefect", "work-pool", "create", "local", "--type", "process", "--overwrite")
    uncommitted = "changes that are not committed do not reach workers on other machines"
    assert uncommitted not in call(project, "prefect", "--no-prompt", "deploy", "--all")
    with (project / "flows/showing.py").open("a") as file:
        file.write('print("not committed")\n')
    assert uncommitted in call(project, "prefect", "--no-prompt", "deploy", "--all").replace("\n", " ")
    shutil.rmtree(project)  # the deployer's folder is on another machine
    project.mkdir()
    (tmp_path / "host").mkdir()
    worker = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "prefect",
            "worker",
            "start",
            "--pool",
            "local",
            "--work-queue",
            "training",
            "--limit",
            "1",
        ],
        cwd=tmp_path / "host",
        env=project_environment(project, **store, **{WORKSPACE: str(workspace)}),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        call(tmp_path / "host", "prefect", "deployment", "run", "training/nightly")
        first = finished_run(prefect_server, "nightly", 240)
        call(tmp_path / "host", "prefect", "deployment", "run", "training/nightly")
        second = finished_run(prefect_server, "nightly", 120, but=first["id"])
    finally:
        log = stop(worker)
    assert first["state_type"] == second["state_type"] == "COMPLETED", log
    assert "nothing to do" in second["state"]["message"]
    assert "the code of the commit" in log
    assert "not committed" not in log
    assert Path(workspace, "models/model.safetensors").exists()

    git(tmp_path, "clone", "-q", str(origin), str(third))
    said = call(third, "pipeline.cli", "restore", "models:/rsna-retinanet@champion")
    assert "`dvc repro` has nothing to do" in said
    for name in ("models/model.safetensors", "reports/report.html", "reports/metrics.json", "data/prepared/index.csv"):
        assert (third / name).read_bytes() == (workspace / name).read_bytes()
    assert "Running stage" not in call(third, "dvc", "repro")
    run_id = json.loads((third / "models/mlflow_run.json").read_text())["run_id"]
    git(third, "config", "user.email", "test@localhost")
    (third / "dvc.lock").write_text((third / "dvc.lock").read_text() + "# edited\n")
    refused = subprocess.run(
        [sys.executable, "-m", "pipeline.cli", "restore", run_id],
        cwd=third, env=project_environment(third, **store), capture_output=True, text=True,
    )  # fmt: skip
    assert (
        refused.stderr
        == "error: dvc.lock: names the results of another run; commit it first, then --force replaces it\n"
    )
    call(third, "pipeline.cli", "restore", run_id, "--force")
    assert (third / "dvc.lock").read_bytes() == (workspace / "dvc.lock").read_bytes()
