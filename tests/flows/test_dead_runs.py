"""Runs whose process was killed, on a real Prefect server."""

import os
import signal
import socket
import subprocess
import sys
from uuid import uuid4

import pytest
from prefect.client.schemas.objects import FlowRun

from flows.dead_runs import _is_here
from tests.conftest import project_environment
from tests.flows.test_deployments import ask

# A flow that marks itself alive, prints its run id, and then sleeps for 600 s.
ENDLESS = """
import time
from prefect import flow, runtime
from prefect.client.orchestration import get_client
from flows.dead_runs import mark_alive
@flow
def endless():
    with get_client(sync_client=True) as client:
        mark_alive(client, runtime.flow_run.id)
    print("RUN", runtime.flow_run.id, flush=True)
    time.sleep(600)
endless()
"""
CLOSE = "from flows.dead_runs import close_dead_runs; close_dead_runs()"


@pytest.fixture
def start(tmp_path, repository, prefect_server):
    environment = project_environment(tmp_path, PREFECT_API_URL=prefect_server, PYTHONPATH=str(repository))
    return lambda code: subprocess.Popen(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True
    )


def state(server, run):
    (found,) = ask(server, "flow_runs/filter", flow_runs={"id": {"any_": [run]}})
    return found["state_type"]


@pytest.mark.slow
def test_a_killed_run_is_crashed_and_a_living_one_is_left_alone(start, prefect_server):
    first, second = start(ENDLESS), start(ENDLESS)
    try:
        runs = [next(line.split()[1] for line in one.stdout if line.startswith("RUN ")) for one in (first, second)]
        os.kill(first.pid, signal.SIGKILL)
        first.wait()
        assert [state(prefect_server, run) for run in runs] == ["RUNNING", "RUNNING"]
        assert start(CLOSE).wait(60) == 0
        assert [state(prefect_server, run) for run in runs] == ["CRASHED", "RUNNING"]
    finally:
        for one in (first, second):
            one.kill()
            one.wait()
            one.stdout.close()


@pytest.mark.parametrize(
    ("worker", "labels", "here"),
    [
        (None, {}, True),
        ("{host}:17", {}, True),
        ("gpu2:17", {}, False),
        (None, {"pneumoflow.host": "gpu2"}, False),
        ("gpu2:17", {"pneumoflow.host": "{host}"}, True),
    ],
)
def test_the_machine_that_a_run_works_on(worker, labels, here):
    host = socket.gethostname()
    labels = {key: value.format(host=host) for key, value in labels.items()}
    pid = worker and worker.format(host=host)
    assert _is_here(FlowRun(flow_id=uuid4(), infrastructure_pid=pid, labels=labels)) is here
