"""SIGKILL of any of the processes that a schedule consists of: the next run starts, and the dead one is Crashed."""

import contextlib
import json
import subprocess
import sys
import time
import urllib.request
from datetime import UTC, datetime

import psutil
import pytest
import yaml

from flows.training import LOCK
from tests.conftest import project_environment
from tests.flows.conftest import free_port
from tests.flows.family import Family, kill_at_once
from tests.flows.terminal import started_training

pytestmark = [pytest.mark.long, pytest.mark.timeout(1200)]

# A run falls due each minute, and its process takes a while to start on a machine with other work.
DUE, START = 60, 30


class Site:
    """A project with its Prefect server, and the processes that serve it; each can be killed and started again."""

    def __init__(self, folder, log):
        self.folder, self.family = folder, Family()
        self._port = free_port()
        self._log = log.open("w")
        self._env = self.family.env(project_environment(folder, PREFECT_API_URL=f"{self.server}/api"))
        self._commands = {}

    @property
    def server(self):
        return f"http://127.0.0.1:{self._port}"

    def start(self, name, *command):
        """Start a process, or start it again."""
        self._commands[name] = command or self._commands[name]
        arguments = [sys.executable, "-m", *self._commands[name]]
        process = subprocess.Popen(
            arguments, cwd=self.folder, env=self._env, stdout=self._log, stderr=self._log, start_new_session=True
        )
        if name in ("server", "pages"):
            wait_for(self.answers)
        return process

    def start_server(self):
        self.start("server", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(self._port))

    def start_pages(self):
        self.start("pages", "flows.ui", "--mlflow-port", str(free_port()), "--prefect-port", str(self._port))

    def prefect(self, *arguments):
        done = subprocess.run(
            [sys.executable, "-m", "prefect", *arguments],
            cwd=self.folder, env=self._env, capture_output=True, text=True, timeout=200,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr

    def answers(self):
        with contextlib.suppress(OSError):
            return urllib.request.urlopen(f"{self.server}/api/health", timeout=2).status == 200
        return False

    def runs(self):
        """All flow runs that have begun, the oldest first."""
        request = urllib.request.Request(
            f"{self.server}/api/flow_runs/filter", b"{}", {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            found = json.load(answer)
        return sorted((run for run in found if run["start_time"]), key=lambda run: run["start_time"])

    def cut_off(self, *names):
        """SIGKILL to the processes of these names at once ("all": a power cut), and start again what served."""
        served = [name for name in self._commands if name in names or "all" in names]
        found = [one for name in names for one in self._processes(name)]
        assert len(found) >= len(names)
        kill_at_once(found)
        for name in served:  # in the order in which they were started: the server first
            self.start(name)

    def _processes(self, name):
        if name == "flow":
            return [psutil.Process(json.loads((self.folder / LOCK).read_text())["pid"])]
        words = {"all": (), "stage": ("pipeline.stages",)}
        return self.family.members(*words.get(name, self._commands.get(name, ())))

    def end(self):
        self.family.kill()
        self._log.close()


def wait_for(condition, seconds=180):
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end
        time.sleep(0.5)
    return found


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
    """Processes are killed while a run works: the next run begins in time, and by then the killed one is closed."""
    dead = running(site)
    site.cut_off(*killed)
    since = datetime.now(UTC)

    def begun():
        with contextlib.suppress(OSError):
            skipped = [run for run in site.runs() if run["state_name"] == "Skipped"]
            fresh = [run for run in site.runs() if run not in skipped and moment(run["start_time"]) > since]
            return fresh and fresh[0]

    run = wait_for(begun, DUE + START + 120)
    waited = (moment(run["start_time"]) - since).total_seconds()
    print(f"the next run began {waited:.0f} s after the restart", flush=True)
    assert waited < DUE + START
    # The run that begins closes the killed one first.
    wait_for(lambda: states(site)[dead] == "CRASHED", START)
    assert list(states(site).values()).count("RUNNING") <= 1


def states(site):
    return {run["id"]: run["state_type"] for run in site.runs()}


def running(site):
    return wait_for(lambda: [run for run in site.runs() if run["state_type"] == "RUNNING"])[0]["id"]


@pytest.mark.parametrize(
    "killed", [("flow",), ("serve", "flow"), ("server", "flow"), ("serve", "flow", "stage"), ("all",)], ids="-".join
)
def test_training_that_is_served(site, killed):
    site.start_server()
    site.start("serve", "flows.serve")
    wait_for(lambda: started_training(site.folder))
    require_next_run_after(site, *killed)


def start_worker(site, deployment):
    """A worker with one deployment of `prefect.yaml`, each minute."""
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
    wait_for(lambda: started_training(site.folder))
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
    wait_for(lambda: started_training(site.folder))
    require_next_run_after(site, "all")
