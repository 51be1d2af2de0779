"""The files in deploy/ are read by the programs for which they are written; no container engine is needed."""

import json
import os
import re
import shutil
import subprocess

import pytest
import yaml
from packaging.requirements import Requirement
from prefect.automations import Automation

from tests.conftest import REPOSITORY
from tests.deploy.hosts import write_dvc_config
from tests.deploy.servers import BIN, DEPLOY, fill_template, make_certificates, make_env, resolved


def run(*command, **options):
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def needs(program):
    path = shutil.which(program) or shutil.which(program, path=f"{BIN}:/usr/sbin")
    if path is None:
        pytest.skip(f"{program} is not installed")
    return path


def test_the_compose_file_needs_nothing_but_what_make_env_prints(tmp_path):
    needs("docker-compose")
    values = make_env(tmp_path)
    services = resolved(tmp_path)["services"]
    assert {"postgres", "s3", "mlflow", "prefect", "nginx", "worker", "gpu-worker", "backup"} <= services.keys()
    named = set(re.findall(r"\$\{(\w+):?\?", (DEPLOY / "compose.yaml").read_text()))
    assert named <= values.keys()
    assert values.keys() - named <= set(re.findall(r"\$\{(\w+)", (DEPLOY / "compose.yaml").read_text()))


def test_only_nginx_is_reachable_from_outside_and_only_from_this_machine_unless_asked(tmp_path):
    needs("docker-compose")
    make_env(tmp_path)
    services = resolved(tmp_path)["services"]
    assert [name for name, service in services.items() if service.get("ports")] == ["nginx"]
    assert {port["host_ip"] for port in services["nginx"]["ports"]} == {"127.0.0.1"}
    make_env(tmp_path, LISTEN_ADDRESS="0.0.0.0")
    assert {port["host_ip"] for port in resolved(tmp_path)["services"]["nginx"]["ports"]} == {"0.0.0.0"}


def test_each_installation_has_its_own_passwords(tmp_path):
    first, second = (make_env(tmp_path) for _ in range(2))
    secret = {key for key in first if "PASSWORD" in key or "SECRET" in key or key == "PREFECT_AUTH"}
    assert len(secret) == 10
    assert all(first[key] != second[key] and len(first[key]) >= 48 for key in secret)


def test_workers_take_one_run_at_a_time(tmp_path):
    needs("docker-compose")
    make_env(tmp_path)
    workers = [service for name, service in resolved(tmp_path)["services"].items() if name.endswith("worker")]
    assert len(workers) == 3
    for worker in workers:
        assert worker["command"][worker["command"].index("--limit") + 1] == "1"


def test_hadolint_accepts_the_dockerfile():
    run(needs("hadolint"), DEPLOY / "Dockerfile")


def test_containers_do_not_run_as_root():
    stages = re.split(r"^FROM ", (DEPLOY / "Dockerfile").read_text(), flags=re.MULTILINE)[1:]
    made = {stage.split()[2]: stage for stage in stages}
    for name in ("servers", "worker", "serving"):
        assert "\nUSER 10001\n" in made[name]
        assert "\nHEALTHCHECK " in made[name]


@pytest.mark.parametrize("name", ["servers", "worker"])
def test_packages_of_the_images_have_digests_and_the_tested_versions(name):
    text = (DEPLOY / f"{name}.txt").read_text().replace("\\\n", " ")
    lines = [line.split("--hash=", 1) for line in text.splitlines()]
    assert all(len(parts) == 2 and parts[1].startswith("sha256:") for parts in lines)
    pinned = dict(_pin(parts[0]) for parts in lines)
    tested = dict(_pin(line) for line in (REPOSITORY / "constraints.txt").read_text().splitlines())
    assert {"mlflow", "prefect", "psycopg", "boto3"} <= pinned.keys()
    assert {key: version for key, version in pinned.items() if tested.get(key, version) != version} == {}
    assert len(pinned.keys() & tested.keys()) > 0.8 * len(pinned)


def _pin(line):
    requirement = Requirement(line.strip())
    (specifier,) = requirement.specifier
    return re.sub(r"[-_.]+", "-", requirement.name).lower(), specifier.version


def test_the_images_hold_what_the_product_needs():
    import tomllib

    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    needed = {_name(one) for one in [*project["dependencies"], *extras["team"], *extras["sr"], *extras["export"]]}
    pinned = re.findall(r"^([\w.-]+)==", (DEPLOY / "worker.txt").read_text(), flags=re.MULTILINE)
    assert needed <= {_name(one) for one in pinned}


def _name(requirement):
    return re.sub(r"[-_.]+", "-", Requirement(requirement).name).lower()


@pytest.mark.parametrize("path", sorted((DEPLOY / "systemd").iterdir()), ids=lambda path: path.name)
def test_systemd_accepts_the_units(path, tmp_path):
    analyze = needs("systemd-analyze")
    for name in ("bin/prefect", "deploy/mlflow.sh", "deploy/s3.sh"):
        program = tmp_path / name
        program.parent.mkdir(exist_ok=True)
        program.write_text("#!/bin/sh\n")
        program.chmod(0o755)
    unit = tmp_path / path.name.replace("@", "@training")
    unit.write_text(path.read_text().replace("/opt/pneumoflow", str(tmp_path)))
    assert not run(analyze, "verify", "--man=no", unit)


def test_nginx_accepts_its_configuration(tmp_path):
    nginx = needs("nginx")
    make_certificates(tmp_path / "tls")
    values = {"TEAM_HOST": "localhost", "TLS_FOLDER": str(tmp_path / "tls")}
    for number, name in enumerate(("MLFLOW", "PREFECT", "S3")):
        values |= {f"{name}_LISTEN": str(9443 + number), f"{name}_ADDRESS": "127.0.0.1:5000"}
    (tmp_path / "site.conf").write_text(fill_template(values))
    (tmp_path / "nginx.conf").write_text(
        f"pid {tmp_path}/pid; events {{}} http {{ access_log off; include {tmp_path}/site.conf; }}"
    )
    run(nginx, "-t", "-c", tmp_path / "nginx.conf", "-p", tmp_path)


def test_prometheus_accepts_its_configuration(tmp_path):
    text = (DEPLOY / "prometheus.yaml").read_text()
    password = tmp_path / "password"
    password.write_text("secret")
    (tmp_path / "prometheus.yaml").write_text(text.replace("/etc/prometheus/prefect_password", str(password)))
    run(needs("promtool"), "check", "config", tmp_path / "prometheus.yaml")


def test_prefect_accepts_the_automation():
    made = Automation.model_validate(yaml.safe_load((DEPLOY / "automation.yaml").read_text()))
    assert made.trigger.within.total_seconds() == 180
    (action,) = made.actions
    assert (action.type, action.state.value) == ("change-flow-run-state", "CRASHED")


def test_kubernetes_accepts_the_jobs_of_the_pool(tmp_path):
    validate = needs("kubernetes-validate")
    pool = json.loads((DEPLOY / "kubernetes" / "pool.json").read_text())
    known = pool["variables"]["properties"]
    used = set(re.findall(r"\{\{ (\w+) \}\}", json.dumps(pool["job_configuration"])))
    assert used == known.keys()
    # What Prefect's worker makes of the template: values in place of the variables, a list in place of the environment.
    values = {key: json.dumps(entry["default"]) for key, entry in known.items()}
    values["env"] = '[{"name": "PREFECT_API_URL", "value": "https://localhost"}]'
    manifest = re.sub(
        r'"\{\{ (\w+) \}\}"', lambda found: values[found[1]], json.dumps(pool["job_configuration"]["job_manifest"])
    )
    job = json.loads(manifest)
    # The API server makes the name; this program wants one.
    job["metadata"]["name"] = job["metadata"].pop("generateName") + "1"
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(job))
    run(validate, "--strict", tmp_path / "job.yaml")


@pytest.mark.parametrize("path", sorted(DEPLOY.glob("*.sh")), ids=lambda path: path.name)
def test_the_shell_reads_the_scripts(path):
    run("sh", "-n", path)


def test_clones_of_one_host_fetch_the_data_once(tmp_path):
    environment = os.environ | {"DVC_SYSTEM_CONFIG_DIR": str(write_dvc_config(tmp_path)), "DVC_NO_ANALYTICS": "1"}
    origin, clones = tmp_path / "origin", [tmp_path / "first", tmp_path / "second"]
    (origin / "data").mkdir(parents=True)
    (origin / "data" / "study.dcm").write_bytes(b"pixels")
    run("git", "init", "-q", cwd=origin)
    for command in ("init -q", f"remote add -q -d team {tmp_path}/remote", "add -q data", "push -q"):
        run(BIN / "dvc", *command.split(), cwd=origin)
    run("git", "add", ".", cwd=origin)
    run("git", "-c", "user.name=test", "-c", "user.email=test@localhost", "commit", "-qm", "data", cwd=origin)
    for clone in clones:
        run("git", "clone", "-q", origin, clone)
        run(BIN / "dvc", "pull", "-q", cwd=clone, env=environment)
        shutil.rmtree(tmp_path / "remote", ignore_errors=True)
    first, second = (clone / "data" / "study.dcm" for clone in clones)
    assert second.read_bytes() == b"pixels"
    assert first.samefile(second)
