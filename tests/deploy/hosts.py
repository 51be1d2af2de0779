"""Hosts of a team: processes in namespaces of their own, that end together, and share nothing but the network."""

import os
import shutil
import signal
import subprocess
import sys

import requests

from tests.deploy.servers import DEPLOY
from tests.waiting import wait_until

ENDED = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")
MODEL = "rsna-retinanet"


def may_make_hosts():
    """Return whether this user may make namespaces."""
    return shutil.which("unshare") is not None and (
        subprocess.run(["unshare", "--mount", "--pid", "--uts", "--fork", "true"], check=False).returncode == 0
    )


def write_dvc_config(folder):
    """Write deploy/dvc.config with a cache in a folder, where DVC looks for it; return DVC_SYSTEM_CONFIG_DIR."""
    place = folder / "etc"
    place.mkdir()
    (place / "config").write_text((DEPLOY / "dvc.config").read_text().replace("/workspace/cache", f"{folder}/cache"))
    return place


class Host:
    """A machine with its own files, process numbers and name, and the variables of a worker in deploy/compose.yaml."""

    def __init__(self, name, folder, servers, origin, **environment):
        self.name, self.folder = name, folder / name
        home = self.folder / "home"
        home.mkdir(parents=True)
        self.clone = self.folder / "clone"
        self.environment = servers.environment("worker") | {
            "HOME": str(home),
            "TMPDIR": str(home),
            "PREFECT_HOME": str(home / "prefect"),
            "PNEUMOFLOW_WORKSPACE": str(self.clone),
            "PNEUMOFLOW_REPOSITORY": str(origin),
            "DVC_NO_ANALYTICS": "1",
            "NO_ALBUMENTATIONS_UPDATE": "1",
            "GIT_CONFIG_GLOBAL": str(home / "gitconfig"),
            "DVC_SYSTEM_CONFIG_DIR": str(write_dvc_config(self.folder)),
            "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
        }
        (home / "gitconfig").write_text("[user]\nname = test\nemail = test@localhost\n[safe]\ndirectory = *\n")
        self.environment |= environment
        self.processes = []

    def _command(self, words):
        namespaces = ["unshare", "--mount", "--pid", "--uts", "--fork", "--mount-proc", "--kill-child"]
        named = ["sh", "-c", f'hostname {self.name}; exec "$@"', "sh"]
        return [*namespaces, *named, sys.executable, "-m", *map(str, words)]

    def start(self, *words, cwd=None):
        """Start a Python module in the host; what it prints goes to the host's log."""
        with (self.folder / "log").open("ab") as log:
            process = subprocess.Popen(
                self._command(words),
                cwd=cwd or self.folder,
                env=self.environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.processes.append(process)
        return process

    def run(self, *words, cwd=None, code=0, timeout=400, **environment):
        """Run a Python module in the host; return what it printed.

        A variable that is None is not set. ``code`` is the exit code that the module must have; None: any.
        """
        environment = {key: value for key, value in (self.environment | environment).items() if value is not None}
        done = subprocess.run(
            self._command(words),
            cwd=cwd or self.folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        assert code in (None, done.returncode), f"{words}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    def start_worker(self, queue="training"):
        """Start the worker of deploy/compose.yaml."""
        return self.start("prefect", "worker", "start", "--pool", "local", "--type", "process",
                          "--work-queue", queue, "--limit", "1")  # fmt: skip

    def kill(self):
        """Switch the host off: SIGKILL to everything in it."""
        for process in self.processes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(30)
        self.processes = []

    def log(self):
        """Return what the host's processes printed."""
        path = self.folder / "log"
        return path.read_text(errors="replace") if path.exists() else ""


class Asking:
    """Requests to MLflow and Prefect as their administrators make them."""

    def __init__(self, servers):
        self._servers = servers
        self._authority = str(servers.folder / "tls" / "ca.crt")

    def mlflow(self, path, /, method=None, **body):
        """Ask MLflow; with a body, by POST unless another method is given."""
        account = ("admin", self._servers.env["MLFLOW_ADMIN_PASSWORD"])
        address = f"https://localhost:{self._servers.env['MLFLOW_PORT']}/api/2.0/mlflow/{path}"
        method = method or ("POST" if body else "GET")
        content = {"params": body} if method == "GET" else {"json": body}
        answer = requests.request(method, address, auth=account, verify=self._authority, timeout=60, **content)
        assert answer.ok, f"{path}: {answer.status_code} {answer.text[:300]}"
        return answer.json() if answer.content else {}

    def prefect(self, path, **body):
        """Ask Prefect, by POST."""
        address = f"https://localhost:{self._servers.env['PREFECT_PORT']}/api/{path}"
        account = tuple(self._servers.env["PREFECT_AUTH"].split(":", 1))
        answer = requests.post(address, json=body, auth=account, verify=self._authority, timeout=60)
        assert answer.ok, f"{path}: {answer.status_code} {answer.text[:300]}"
        return answer.json()

    def flow_run(self, run_id):
        """Return a flow run's record."""
        return self.prefect("flow_runs/filter", flow_runs={"id": {"any_": [run_id]}})[0]

    def ended(self, run_id, seconds):
        """Wait for a flow run's end; return its record."""
        wait_until(lambda: self.flow_run(run_id)["state_type"] in ENDED, seconds, pause=1)
        return self.flow_run(run_id)

    def start_training(self):
        """Create a run of the deployment training/nightly; return its id."""
        (deployment,) = self.prefect("deployments/filter", deployments={"name": {"any_": ["nightly"]}})
        return self.prefect(f"deployments/{deployment['id']}/create_flow_run", state={"type": "SCHEDULED"})["id"]

    def runs(self):
        """Return MLflow's runs of the project, newest first."""
        (experiment,) = [
            one for one in self.mlflow("experiments/search", max_results=10)["experiments"] if one["name"] != "Default"
        ]
        found = self.mlflow("runs/search", experiment_ids=[experiment["experiment_id"]], max_results=100)
        return found.get("runs", [])

    def artifacts(self, run_id, folder=""):
        """Return the paths of the files and folders in a folder of a run's artifacts."""
        answer = self.mlflow("artifacts/list", method="GET", run_id=run_id, path=folder or None)
        return [one["path"] for one in answer.get("files", [])]

    def history(self, run_id, metric):
        """Return steps and seconds of a run's metric, as often as it was logged."""
        answer = self.mlflow("metrics/get-history", method="GET", run_id=run_id, metric_key=metric, max_results=20000)
        return [(int(one.get("step", 0)), int(one["timestamp"]) / 1000) for one in answer.get("metrics", [])]

    def steps(self, run_id, metric):
        """Return the steps of a run's metric, which must be there once each."""
        steps = sorted(step for step, _ in self.history(run_id, metric))
        assert steps == sorted(set(steps))
        return steps

    def champion(self):
        """Return the number of the version with the alias champion."""
        answer = self.mlflow("registered-models/alias", method="GET", name=MODEL, alias="champion")
        return answer["model_version"]["version"]

    def aliases(self):
        """Return the model's aliases."""
        answer = self.mlflow("registered-models/get", method="GET", name=MODEL)
        return [one["alias"] for one in answer["registered_model"].get("aliases", [])]
