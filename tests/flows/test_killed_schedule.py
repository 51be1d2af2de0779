"""SIGKILL to any of the processes of a schedule: the next run starts, and the killed run becomes Crashed."""

import contextlib
from datetime import UTC, datetime

import pytest
import yaml

from tests.flows.site import Site
from tests.flows.terminal import started_training
from tests.waiting import wait_until

pytestmark = [pytest.mark.long, pytest.mark.timeout(1200)]

# In seconds: a run falls due each minute, and its process takes a while to start on a busy machine.
DUE, START = 60, 30


@pytest.fixture
def site(copy, edit, tmp_path):
    edit(copy, "train", epochs=400)
    edit(copy, "schedule", cron="* * * * *")
    made = Site(copy, tmp_path / "site.log")
    yield made
    made.end()


def moment(text):
    return datetime.fromisoformat(text)


def require_next_run_after(site, *killed):
    """Kill processes while a run works; require that the next run begins in time and that the killed one is closed."""
    dead = running(site)
    site.cut_off(*killed)
    since = datetime.now(UTC)

    def begun():
        with contextlib.suppress(OSError):
            skipped = [run for run in site.runs() if run["state_name"] == "Skipped"]
            fresh = [run for run in site.runs() if run not in skipped and moment(run["start_time"]) > since]
            return fresh and fresh[0]

    run = wait_until(begun, DUE + START + 120)
    waited = (moment(run["start_time"]) - since).total_seconds()
    print(f"the next run began {waited:.0f} s after the restart", flush=True)
    assert waited < DUE + START
    # The new run closes the killed one first.
    wait_until(lambda: states(site)[dead] == "CRASHED", START)
    assert list(states(site).values()).count("RUNNING") <= 1


def states(site):
    return {run["id"]: run["state_type"] for run in site.runs()}


def running(site):
    return wait_until(lambda: [run for run in site.runs() if run["state_type"] == "RUNNING"], 180)[0]["id"]


@pytest.mark.parametrize(
    "killed", [("flow",), ("serve", "flow"), ("server", "flow"), ("serve", "flow", "stage"), ("all",)], ids="-".join
)
def test_training_that_is_served(site, killed):
    site.start_server()
    site.start("serve", "flows.serve")
    wait_until(lambda: started_training(site.folder), 180)
    require_next_run_after(site, *killed)


def start_worker(site, deployment):
    """Start a worker with one deployment of `prefect.yaml`, which runs each minute."""
    listed = yaml.safe_load((site.folder / "prefect.yaml").read_text())
    for one in listed["deployments"]:
        one["schedules"] = [{"cron": "* * * * *", "timezone": "UTC", "active": True}]
    (site.folder / "prefect.yaml").write_text(yaml.safe_dump(listed))
    site.prefect("work-pool", "create", "local", "--type", "process")
    site.prefect("--no-prompt", "deploy", "--name", deployment)
    site.start("worker", "prefect", "worker", "start", "--pool", "local")


@pytest.mark.parametrize("killed", [("worker", "flow"), ("all",)], ids="-".join)
def test_training_by_a_worker(site, killed):
    site.start_server()
    start_worker(site, "nightly")
    wait_until(lambda: started_training(site.folder), 180)
    require_next_run_after(site, *killed)


@pytest.mark.parametrize("deployment", ["inbox", "drift"])
def test_inbox_and_monitoring_by_a_worker(site, deployment):
    (site.folder / "inbox").mkdir()
    site.start_server()
    start_worker(site, deployment)
    require_next_run_after(site, "all")


def test_with_the_pages_in_between(site):
    site.start_pages()
    site.start("serve", "flows.serve")
    wait_until(lambda: started_training(site.folder), 180)
    require_next_run_after(site, "all")
