"""A project with servers and processes of its own that can be killed and started again."""

import contextlib
import json
import subprocess
import sys
import urllib.request

import psutil

from pipeline.folder_lock import RUN_LOCK
from tests.conftest import project_environment
from tests.flows.conftest import free_port
from tests.flows.family import Family, kill_at_once
from tests.waiting import wait_until


class Site:
    """A project with its Prefect server and its other processes; each can be killed and started again."""

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
            wait_until(self.answers, 180)
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
        """Return all flow runs that have begun, the oldest first."""
        request = urllib.request.Request(
            f"{self.server}/api/flow_runs/filter", b"{}", {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            found = json.load(answer)
        return sorted((run for run in found if run["start_time"]), key=lambda run: run["start_time"])

    def cut_off(self, *names):
        """Send SIGKILL to these processes at once ("all": a power cut), and restart those that `start` started."""
        served = [name for name in self._commands if name in names or "all" in names]
        self.kill(*names)
        for name in served:  # in the order in which they were started: the server first
            self.start(name)

    def kill(self, *names):
        """Send SIGKILL to the processes of these names at once."""
        found = [one for name in names for one in self._processes(name)]
        assert len(found) >= len(names)
        kill_at_once(found)

    def signal(self, number):
        """Send a signal to all processes at once."""
        for process in self._processes("all"):
            process.send_signal(number)

    def _processes(self, name):
        if name == "flow":
            return [psutil.Process(json.loads((self.folder / RUN_LOCK).read_text())["pid"])]
        words = {"all": (), "stage": ("pipeline.stages",)}
        return self.family.members(*words.get(name, self._commands.get(name, ())))

    def end(self):
        self.family.kill()
        self._log.close()
