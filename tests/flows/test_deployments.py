"""The flow on a schedule and on a worker, against a real Prefect server."""

import json
import signal
import subprocess
import sys
import time
import urllib.request
from functools import partial

import mlflow
import psutil
import pytest

from tests.conftest import project_environment
from tests.flows.conftest import free_port, wait_for_server
from tests.flows.terminal import started_training
from tests.waiting import wait_until

pytestmark = pytest.mark.slow


@pytest.fixture
def prefect_in(prefect_server):
    """Run a prefect command in a project."""

    def call(folder, *arguments, wait=True):
        environment = project_environment(folder, PREFECT_API_URL=prefect_server)
        command = [sys.executable, "-m", "prefect", *arguments]
        options = {
            "cwd": folder,
            "env": environment,
            "text": True,
            "stdout": subprocess.PIPE,
            "stderr": subprocess.STDOUT,
        }
        if not wait:
            return subprocess.Popen(command, **options)
        done = subprocess.run(command, timeout=200, **options)
        assert done.returncode == 0, done.stdout
        return done.stdout

    return call


@pytest.fixture
def prefect(trained, prefect_in):
    """Run a prefect command in the trained project."""
    return partial(prefect_in, trained[0])


def ask(server, path, **body):
    request = urllib.request.Request(
        f"{server}/{path}", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


def finished_run(server, deployment, seconds=120, run_id=None, but=None):
    """Wait for a finished run of a deployment other than ``but``, or for the run ``run_id``, and return it."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        for run in ask(server, "flow_runs/filter", deployments={"name": {"any_": [deployment]}}):
            ended = run["state_type"] in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")
            if ended and run_id in (None, run["id"]) and run["id"] != but:
                return run
        time.sleep(0.5)
    pytest.fail("no run finished")


def stop(process):
    process.send_signal(signal.SIGINT)
    try:
        return process.communicate(timeout=40)[0]
    except subprocess.TimeoutExpired:
        process.kill()
        raise


def test_a_worker_runs_what_prefect_yaml_lists(prefect, prefect_server):
    prefect("work-pool", "create", "local", "--type", "process")
    assert "training/nightly" in prefect("--no-prompt", "deploy", "--all")
    (deployment,) = ask(prefect_server, "deployments/filter", deployments={"name": {"any_": ["nightly"]}})
    assert deployment["schedules"][0]["schedule"]["cron"] == "0 3 * * *"
    assert deployment["schedules"][0]["schedule"]["timezone"] == "UTC"
    # The folder's lock allows one run at a time: a limit on the server would outlive a killed run.
    assert deployment["global_concurrency_limit"] is None
    worker = prefect("worker", "start", "--pool", "local", wait=False)
    try:
        prefect("deployment", "run", "training/nightly")
        run = finished_run(prefect_server, "nightly")
    finally:
        log = stop(worker)
    assert run["state_type"] == "COMPLETED", log
    assert "nothing to do" in run["state"]["message"]


@pytest.mark.long
def test_another_folder_does_not_take_deployments_over(copy, prefect_in, trained, prefect_server):
    """Refuse: Prefect silently replaces a deployment of the same name, whose worker would run the other folder."""
    for folder in (trained[0], copy):
        prefect_in(folder, "work-pool", "create", "local", "--type", "process", "--overwrite")
    prefect_in(trained[0], "--no-prompt", "deploy", "--all")
    before = ask(prefect_server, "deployments/filter")
    refused = prefect_in(copy, "--no-prompt", "deploy", "--all", wait=False)
    said = refused.communicate(timeout=120)[0]
    assert refused.returncode != 0
    assert f"belongs to {trained[0]}; deploy to another server, change the name, or" in " ".join(said.split())
    assert ask(prefect_server, "deployments/filter") == before


@pytest.mark.long
def test_cancelling_a_run_of_a_worker_leaves_nothing_alive(copy, edit, prefect_in, prefect_server):
    edit(copy, "train", epochs=200)
    prefect_in(copy, "work-pool", "create", "local", "--type", "process", "--overwrite")
    prefect_in(copy, "--no-prompt", "deploy", "--all")
    worker = prefect_in(copy, "worker", "start", "--pool", "local", wait=False)
    try:
        prefect_in(copy, "deployment", "run", "training/nightly")
        wait_until(lambda: started_training(copy), 150)
        family = psutil.Process(worker.pid).children(recursive=True)
        assert any("pipeline.stages.train" in " ".join(member.cmdline()) for member in family)
        running = ask(prefect_server, "flow_runs/filter", flow_runs={"state": {"type": {"any_": ["RUNNING"]}}})
        prefect_in(copy, "flow-run", "cancel", running[0]["id"])
        _, alive = psutil.wait_procs(family, timeout=45)
        assert alive == []
        assert finished_run(prefect_server, "nightly", 30, running[0]["id"])["state_type"] == "CANCELLED"
    finally:
        stop(worker)
    client = mlflow.MlflowClient(f"sqlite:///{copy}/mlflow.db")
    (run,) = client.search_runs(["1"])
    assert run.info.status == "KILLED"
    assert started_training(copy)


@pytest.mark.long
def test_serving_runs_the_flow_on_its_schedule(trained, prefect, prefect_server):
    process = subprocess.Popen(
        [sys.executable, "-m", "flows.serve"],
        cwd=trained[0],
        env=project_environment(trained[0], PREFECT_API_URL=prefect_server),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        deadline = time.monotonic() + 90
        while not (found := ask(prefect_server, "deployments/filter", deployments={"name": {"any_": ["scheduled"]}})):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.5)
        assert found[0]["schedules"][0]["schedule"]["cron"] == "0 3 * * *"
        assert found[0]["global_concurrency_limit"] is None
        # The server's scheduler creates the runs of the coming nights.
        while not (coming := ask(prefect_server, "flow_runs/filter", deployments={"name": {"any_": ["scheduled"]}})):
            assert time.monotonic() < deadline
            time.sleep(0.5)
        assert {run["state_type"] for run in coming} == {"SCHEDULED"}
        assert all(run["expected_start_time"][11:19] == "03:00:00" for run in coming)
        prefect("deployment", "run", "training/scheduled")
        run = finished_run(prefect_server, "scheduled")
    finally:
        log = stop(process)
    assert run["state_type"] == "COMPLETED", log
    assert "nothing to do" in run["state"]["message"]
    assert "the flow training runs by the schedule '0 3 * * *' (UTC)" in log
    assert "Traceback" not in log


def test_both_pages_on_loopback(trained):
    mlflow_port, prefect_port = free_port(), free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "flows.ui", "--mlflow-port", str(mlflow_port), "--prefect-port", str(prefect_port)],
        cwd=trained[0],
        env=project_environment(trained[0]),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        pages = f"http://127.0.0.1:{mlflow_port}/#/experiments/1/runs"
        columns = "viewStateShareKey=headline&workflowType=machine_learning"
        assert process.stdout.readline() == f"MLflow:  {pages}?{columns}\n"
        run_id = json.loads((trained[0] / "models/mlflow_run.json").read_text())["run_id"]
        assert f" {pages}/{run_id}?" in process.stdout.readline()
        wait_for_server(f"http://127.0.0.1:{prefect_port}/api/health", process)
        runs = ask(f"http://127.0.0.1:{mlflow_port}/api/2.0/mlflow", "runs/search", experiment_ids=["1"])
        assert runs["runs"][0]["info"]["status"] == "FINISHED"
        flows = ask(f"http://127.0.0.1:{prefect_port}/api", "flow_runs/filter")
        assert "COMPLETED" in {run["state_type"] for run in flows}
        artifacts = ask(f"http://127.0.0.1:{prefect_port}/api", "artifacts/filter")
        assert {artifact["key"] for artifact in artifacts} >= {"metrics", "results"}
        assert "rsna_score" in str(next(one for one in artifacts if one["key"] == "metrics")["data"])
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)
    for port in (mlflow_port, prefect_port):
        with pytest.raises(OSError):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=2)


def test_pages_that_run_elsewhere_are_named_and_not_started(tmp_path, run, one_line_error, prefect_server):
    elsewhere = {"MLFLOW_TRACKING_URI": "http://me:GeHeim1@mlflow.clinic:5000", "PREFECT_API_URL": prefect_server}
    done = run("flows.ui", cwd=tmp_path, **elsewhere)
    assert done.returncode == 0, done.stderr
    pages = prefect_server.removesuffix("/api")
    assert done.stdout == f"MLflow:  http://mlflow.clinic:5000\nPrefect: {pages}\n"
    # A server of the user's own, on the port that ours would take.
    done = run("flows.ui", cwd=tmp_path, **elsewhere | {"MLFLOW_TRACKING_URI": "http://127.0.0.1:5000"})
    assert done.stdout == f"MLflow:  http://127.0.0.1:5000\nPrefect: {pages}\n"
    gone = f"http://127.0.0.1:{free_port()}/api"
    done = run("flows.ui", cwd=tmp_path, **elsewhere | {"PREFECT_API_URL": gone})
    one_line_error(done, f"PREFECT_API_URL = {gone}: no Prefect server answers", "Connection refused")
