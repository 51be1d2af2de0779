"""A team's work on real servers: PostgreSQL, an object store, MLflow and Prefect with accounts, behind nginx with TLS.

`make test-team` runs these. They need root, for the hosts' namespaces, and Debian's postgresql and nginx.
"""

import contextlib
import json
import math
import subprocess
import time
from types import SimpleNamespace

import pytest
import yaml

from tests.conftest import make_project
from tests.deploy.hosts import MODEL, Asking, Host, may_make_hosts
from tests.deploy.servers import DEPLOY, Servers, missing
from tests.waiting import wait_until

pytestmark = [pytest.mark.team, pytest.mark.timeout(1500)]

LONGER_THAN_ALL_OUTAGES = 200  # seconds


@pytest.fixture(scope="module")
def servers(tmp_path_factory):
    if lacking := missing():
        pytest.skip(f"not installed: {', '.join(lacking)}")
    if not may_make_hosts():
        pytest.skip("needs the right to make namespaces")
    made = Servers(tmp_path_factory.mktemp("servers"))
    try:
        made.start_all()
        yield made
    finally:
        made.stop_all()


@pytest.fixture(scope="module")
def ask(servers):
    return Asking(servers)


class Hosts:
    """The hosts of the tests, by name; ``origin`` is the repository from which their workers clone."""

    def __init__(self, servers, folder):
        self._servers, self._folder = servers, folder
        self.origin, self.made, self.kept = folder / "origin", [], None

    def __call__(self, name):
        host = Host(name, self._folder, self._servers, self.origin)
        self.made.append(host)
        return host

    def switch_off(self, hosts):
        for host in hosts:
            host.kill()


@pytest.fixture(scope="module")
def make_host(servers, tmp_path_factory):
    hosts = Hosts(servers, tmp_path_factory.mktemp("hosts"))
    yield hosts
    hosts.switch_off(hosts.made)


@pytest.fixture(autouse=True)
def _switched_off(make_host):
    """Switch the hosts off that a test made: whatever happened to it, the next one has the machine to itself."""
    before = len(make_host.made)
    yield
    make_host.switch_off(host for host in make_host.made[before:] if host is not make_host.kept)


def make_pool(host):
    """Make a pool whose runs get MLflow's password from a Secret block of Prefect's."""
    template, script = host.folder / "pool.json", host.folder / "save_secret.py"
    script.write_text(
        "import os\nfrom prefect.blocks.system import Secret\n"
        'Secret(value=os.environ["MLFLOW_TRACKING_PASSWORD"]).save("mlflow-password")\n'
    )
    host.run("save_secret")
    host.run("prefect", "work-pool", "get-default-base-job-template", "--type", "process", "--file", template)
    settings = json.loads(template.read_text())
    secret = {"MLFLOW_TRACKING_PASSWORD": "{{ prefect.blocks.secret.mlflow-password }}"}
    settings["variables"]["properties"]["env"]["default"] = secret
    template.write_text(json.dumps(settings))
    host.run("prefect", "work-pool", "create", "local", "--type", "process", "--base-job-template", template)


@pytest.fixture(scope="module")
def engineer(make_host, sample, _small_params, servers):
    """Make an engineer's machine with a project whose data lie in the team's object store; deploy it."""
    host = make_host("engineer")
    host.environment.pop("DVC_SYSTEM_CONFIG_DIR")  # the data are in the project's own cache
    project = host.folder / "project"
    project.mkdir()
    params = yaml.safe_load(yaml.safe_dump(_small_params))
    make_project(project, sample, params)
    git = ["git", "-c", "user.name=test", "-c", "user.email=test@localhost"]
    run = {"cwd": project, "check": True, "env": host.environment, "capture_output": True}
    subprocess.run(["git", "init", "-q", "--bare", make_host.origin], **run)
    subprocess.run(["git", "remote", "add", "origin", make_host.origin], **run)
    subprocess.run(["dvc", "remote", "add", "-q", "-f", "-d", "team", "s3://dvc/project"], **run)
    host.run("dvc", "push", "-q", "data/rsna.dvc", cwd=project)
    subprocess.run([*git, "commit", "-qam", "the team's remote"], **run)
    subprocess.run(["git", "push", "-q", "origin", "HEAD"], **run)
    make_pool(host)
    host.run("prefect", "--no-prompt", "deploy", "--all", cwd=project)
    host.run("prefect", "automation", "create", "--from-file", DEPLOY / "automation.yaml", cwd=project)

    def deploy(section, **values):
        """Commit other params, push and deploy them."""
        params[section] |= values
        (project / "params.yaml").write_text(yaml.safe_dump(params))
        subprocess.run([*git, "commit", "-qam", "other params"], **run)
        subprocess.run(["git", "push", "-q", "origin", "HEAD"], **run)
        host.run("prefect", "--no-prompt", "deploy", "--all", cwd=project)

    return SimpleNamespace(host=host, project=project, deploy=deploy)


@pytest.fixture(scope="module")
def first_run(engineer, make_host, ask):
    """Let a worker on another host train; return the host and the ended flow run."""
    make_host.kept = host = make_host("alpha")
    host.environment.pop("MLFLOW_TRACKING_PASSWORD")  # the pool has it
    host.start_worker()
    run = ask.ended(ask.start_training(), 600)
    assert run["state_type"] == "COMPLETED", host.log()
    return SimpleNamespace(host=host, flow_run=run)


def test_a_clean_run_from_a_worker_on_another_host(engineer, first_run, ask):
    (run,) = ask.runs()
    assert run["info"]["status"] == "FINISHED"
    assert ask.champion() == "1"
    assert {"dvc.lock", "report.html"} <= set(ask.artifacts(run["info"]["run_id"]))
    said = engineer.host.run("pipeline.cli", "doctor", cwd=engineer.project)
    assert "failed" not in said
    for name in ("versions", "disk", "MLflow", "DVC remote", "Prefect", "GPU"):
        assert f"ok      {name}: " in said
    assert "champion: version 1" in said
    engineer.host.run("pipeline.cli", "restore", f"models:/{MODEL}@champion", cwd=engineer.project)
    assert "Running stage" not in engineer.host.run("dvc", "repro", cwd=engineer.project)


@pytest.fixture(scope="module")
def reader(first_run, ask):
    """Make an account without a role; return its variables."""
    account = ("reader", "a password of its own")
    ask.mlflow("users/create", username=account[0], password=account[1])
    return {"MLFLOW_TRACKING_USERNAME": account[0], "MLFLOW_TRACKING_PASSWORD": account[1]}


@contextlib.contextmanager
def no_champion(ask):
    """Take the alias of the champion away, so that any promotion has something to write; put it back at the end."""
    champion = ask.champion()
    ask.mlflow("registered-models/alias", method="DELETE", name=MODEL, alias="champion")
    try:
        yield
    finally:
        ask.mlflow("registered-models/alias", name=MODEL, alias="champion", version=champion)


def test_missing_rights_are_found_before_anything_is_computed(engineer, reader, ask):
    def refused(*command):
        said = engineer.host.run(*command, cwd=engineer.project, code=1, **reader)
        assert "403" in said
        assert "Traceback" not in said
        return said

    engineer.deploy("train", lr=0.0011)  # so that the flow has something to do
    before, champion = len(ask.runs()), ask.champion()
    said = refused("pipeline.cli", "doctor")
    (line,) = [line for line in said.splitlines() if line.startswith("failed")]
    assert line.startswith("failed  MLflow: ")
    assert f"writing the model {MODEL}: " in line
    said = refused("flows.training")
    assert f"writing the model {MODEL}: " in said
    assert "Running stage" not in said
    assert len(ask.runs()) == before
    with no_champion(ask):
        refused("pipeline.cli", "promote", "--force", "by hand")
        assert "champion" not in ask.aliases()
    assert ask.champion() == champion


@pytest.mark.parametrize(
    ("variable", "value", "check", "reason"),
    [
        ("MLFLOW_TRACKING_SERVER_CERT_PATH", "", "MLflow", "certificate"),
        ("MLFLOW_TRACKING_PASSWORD", "wrong", "MLflow", "401"),
        ("PREFECT_API_SSL_CERT_FILE", "", "Prefect", "certificate"),
        ("PREFECT_API_AUTH_STRING", "team:wrong", "Prefect", "401"),
        ("AWS_CA_BUNDLE", None, "DVC remote", "ertificate"),
        ("AWS_SECRET_ACCESS_KEY", "wrong", "DVC remote", "signature"),
    ],
)
def test_the_doctor_names_what_a_machine_lacks(engineer, first_run, variable, value, check, reason):
    said = engineer.host.run(
        "pipeline.cli", "doctor", cwd=engineer.project, code=1, **{variable: value, "PNEUMOFLOW_PATIENCE": "2"}
    )
    (line,) = [line for line in said.splitlines() if line.startswith("failed")]
    assert line.startswith(f"failed  {check}: ")
    assert reason in line
    assert "Traceback" not in said


def test_a_run_of_a_host_that_was_switched_off_is_taken_up_by_another(engineer, first_run, make_host, ask):
    first_run.host.kill()  # so that it takes no run of the following tests
    engineer.deploy("train", epochs=40, checkpoint_steps=5, checkpoint_store=0.1)
    lost = make_host("bravo")
    lost.start_worker()
    flow_run = ask.start_training()

    def copied():
        run = ask.runs()[0]
        if run["info"]["status"] != "RUNNING":
            return None
        run_id = run["info"]["run_id"]
        copies = ask.artifacts(run_id, "checkpoints")
        return run if any(f"{copy}/copied" in ask.artifacts(run_id, copy) for copy in copies) else None

    run = wait_until(copied, 300, pause=1)
    lost.kill()
    assert ask.mlflow("runs/get", method="GET", run_id=run["info"]["run_id"])["run"]["info"]["status"] == "RUNNING"
    # Its record in Prefect is closed by the automation, not by another run.
    assert ask.ended(flow_run, 420)["state_type"] == "CRASHED"
    other = make_host("charlie")
    other.start_worker()
    ended = ask.ended(ask.start_training(), 900)
    assert ended["state_type"] == "COMPLETED", other.log()
    assert "taking up MLflow run" in other.log()
    taken = ask.mlflow("runs/get", method="GET", run_id=run["info"]["run_id"])["run"]
    assert taken["info"]["status"] == "FINISHED"
    assert len(ask.steps(run["info"]["run_id"], "val/map")) == 40


def test_a_training_outlasts_each_server_being_away(engineer, first_run, make_host, ask, servers):
    (_, first), (_, second) = ask.history(ask.runs()[-1]["info"]["run_id"], "val/map")
    # The servers are away for two minutes and more; a training that ends before them would show little.
    epochs = math.ceil(LONGER_THAN_ALL_OUTAGES / (second - first))
    engineer.deploy("train", epochs=epochs, checkpoint_store=0, lr=0.0006)
    host = make_host("delta")
    host.start_worker()
    flow_run = ask.start_training()
    known = len(ask.runs())
    run = wait_until(lambda: next((one for one in ask.runs()[: len(ask.runs()) - known]), None), 240, pause=1)
    run_id = run["info"]["run_id"]
    wait_until(lambda: len(ask.history(run_id, "val/map")) > 1, 240, pause=1)
    servers.stop("prefect")
    for name in ("postgres", "mlflow", "s3"):
        servers.stop(name)
        time.sleep(30)
        servers.start(name)
        time.sleep(10)
    servers.start("prefect")
    wait_until(lambda: servers.answers("PREFECT_PORT", "/api/health"), 120)
    wait_until(lambda: servers.answers("MLFLOW_PORT", "/health"), 120)
    ended = ask.ended(flow_run, 1200)
    assert ended["state_type"] == "COMPLETED", host.log()
    (ended_run,) = [one for one in ask.runs() if one["info"]["run_id"] == run_id]
    assert ended_run["info"]["status"] == "FINISHED"
    assert ask.steps(run_id, "train/loss")
    assert len(ask.steps(run_id, "val/map")) == epochs


def test_two_trainings_that_end_together_are_each_judged_by_their_own_version(engineer, first_run, make_host, ask):
    hosts = [make_host("echo"), make_host("foxtrot")]
    before = {one["info"]["run_id"] for one in ask.runs()}
    flow_runs = []
    for number, host in enumerate(hosts):
        # The pull step brings each worker to the commit that is deployed when its run begins.
        engineer.deploy("train", epochs=3, lr=0.001 + 0.0005 * number)
        host.start_worker()
        flow_runs.append(ask.start_training())
        wait_until(lambda host=host: "Running stage 'preprocess'" in host.log(), 240)
    for flow_run in flow_runs:
        assert ask.ended(flow_run, 600)["state_type"] == "COMPLETED", [host.log() for host in hosts]
    new = [one for one in ask.runs() if one["info"]["run_id"] not in before]
    assert len(new) == 2
    versions = ask.mlflow("model-versions/search", method="GET", max_results=50)["model_versions"]
    for run in new:
        (version,) = [one for one in versions if one["run_id"] == run["info"]["run_id"]]
        tags = {tag["key"]: tag["value"] for tag in version["tags"]}
        assert "promotion" in tags
    for host in hosts:
        decision = json.loads((host.clone / "reports/promotion.json").read_text())
        own = json.loads((host.clone / "models/mlflow_run.json").read_text())["run_id"]
        (version,) = [one for one in versions if one["run_id"] == own]
        assert decision["challenger"] == version["version"]


def test_the_champion_comes_back_from_a_backup(engineer, first_run, ask, servers, tmp_path_factory, make_host):
    backup = servers.once("backup").split()[-1]
    champion = ask.champion()
    again = Servers(tmp_path_factory.mktemp("again"))
    try:
        again.start_stores()
        again.once("backup", "sh", DEPLOY / "restore.sh", backup)
        again.start("mlflow")
        again.start("nginx")
        wait_until(lambda: again.answers("MLFLOW_PORT", "/health"), 120)
        # The accounts came back with the backup, so the passwords are those of then.
        again.env |= {key: servers.env[key] for key in ("MLFLOW_ADMIN_PASSWORD", "WORKER_MLFLOW_PASSWORD")}
        assert Asking(again).champion() == champion
        out = engineer.host.folder / "restored"
        engineer.host.run(
            "pipeline.cli", "predict", f"models:/{MODEL}@champion", engineer.project / "data/rsna", "--out", out,
            cwd=engineer.project, MLFLOW_TRACKING_URI=f"https://localhost:{again.env['MLFLOW_PORT']}",
            MLFLOW_TRACKING_SERVER_CERT_PATH=str(again.folder / "tls" / "ca.crt"),
        )  # fmt: skip
        assert list(out.glob("*.csv"))
    finally:
        again.stop_all()


def test_pages_answer_with_ten_thousand_runs(engineer, first_run, ask, servers):
    import psycopg

    experiment = ask.runs()[0]["info"]["experiment_id"]
    address = servers.environment("mlflow")["MLFLOW_BACKEND_STORE_URI"].replace("+psycopg", "")
    with psycopg.connect(address) as database:
        database.execute(
            "INSERT INTO runs (run_uuid, name, status, start_time, end_time, lifecycle_stage, experiment_id, user_id,"
            " artifact_uri) SELECT md5(n::text), 'run ' || n, 'FINISHED', n, n + 1, 'active', %s, 'someone',"
            " 'mlflow-artifacts:/' || md5(n::text) FROM generate_series(1, 10000) AS n",
            (experiment,),
        )
        for table, columns in (
            ("latest_metrics", "key, value, timestamp, step, is_nan, run_uuid"),
            ("metrics", "key, value, timestamp, step, is_nan, run_uuid"),
        ):
            database.execute(
                f"INSERT INTO {table} ({columns}) SELECT 'metric ' || k, random(), n, 1, false, md5(n::text)"
                " FROM generate_series(1, 10000) AS n, generate_series(1, 20) AS k"
            )
        database.execute(
            "INSERT INTO params (key, value, run_uuid) SELECT 'param ' || k, k::text, md5(n::text)"
            " FROM generate_series(1, 10000) AS n, generate_series(1, 40) AS k"
        )
        database.execute("ANALYZE")  # the server itself does this within a minute
    started = time.monotonic()
    by_metric = {"max_results": 100, "order_by": ["metrics.`metric 1` DESC"]}
    found = ask.mlflow("runs/search", experiment_ids=[experiment], **by_metric)
    assert len(found["runs"]) == 100
    assert time.monotonic() - started < 5
    started = time.monotonic()
    # No worker waits any more, which the doctor notes; it asks MLflow for rights and for the champion.
    assert "champion: version" in engineer.host.run("pipeline.cli", "doctor", cwd=engineer.project, code=None)
    assert time.monotonic() - started < 60
    assert servers.answers("MLFLOW_PORT", "/health")
