"""Repeated power cuts at random moments of the training flow: in the end, the results are as if there had been none."""

import hashlib
import json
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import mlflow
import pytest

from tests.conftest import make_project, project_environment
from tests.flows.family import Family

KILLS = 10
# Kills come between the first second and this one, which is after the flow's last step.
LATEST_SECONDS = 75
SAME = ("models/model.safetensors", "models/model.json", "data/splits.csv", "reports/metrics.json", "data/prepared")
_STEPS = (
    "keep results", "promote", "publish results", "evaluate", "train", "split", "preprocess", "check rights",
    "pull data",
)  # fmt: skip


def fresh_project(folder, sample, params):
    folder.mkdir(parents=True)
    make_project(folder, sample, params)
    shutil.rmtree(folder / "data" / "rsna")
    shutil.rmtree(folder / ".dvc" / "cache")
    return folder


def contents(folder):
    files = [
        path for name in SAME for path in ([folder / name] if (folder / name).is_file() else (folder / name).rglob("*"))
    ]
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(files)
        if path.is_file()
    }


def temporary_files(folder):
    found = [path for path in folder.rglob("*") if ".git" not in path.parts and ".tmp" in path.name]
    return [str(path.relative_to(folder)) for path in found]


def start(folder, family, log):
    return subprocess.Popen(
        [sys.executable, "-m", "flows.training"],
        cwd=folder,
        env=family.env(project_environment(folder)),
        stdout=log,
        stderr=log,
        start_new_session=True,
    )


def step_at_work(text):
    """Return the last task of the flow that its log names."""
    places = {name: max(text.rfind(f"'{name}'"), text.rfind(f"Task run '{name}")) for name in _STEPS}
    name, place = max(places.items(), key=lambda item: item[1])
    return name if place >= 0 else "start"


def kill_at(moment, folder, log_path, alone):
    """Kill the flow, or all that it has started, after ``moment`` seconds; return its step, or that it had ended."""
    family = Family()
    with log_path.open("w") as log:
        process = start(folder, family, log)
        try:
            status = process.wait(moment)
        except subprocess.TimeoutExpired:
            status = None
        if status is None and alone:
            process.kill()
            process.wait()
            end = time.monotonic() + 40  # the time that a guard gives the command to end
            while family.members() and time.monotonic() < end:
                time.sleep(0.5)
        if status is None and not alone:
            family.kill()
    left = family.members()
    family.kill()
    assert left == []
    text = log_path.read_text()
    assert status in (None, 0), text
    return step_at_work(text) if status is None else "had ended"


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_power_cuts_at_random_moments(trained, sample, small_params, tmp_path, seed, record_property):
    folder = fresh_project(tmp_path / "cut" / "project", sample, small_params)
    chosen = random.Random(seed)
    rows = []
    for number in range(KILLS):
        moment, alone = chosen.uniform(0.5, LATEST_SECONDS), chosen.random() < 0.3
        step = kill_at(moment, folder, tmp_path / f"{number}.log", alone)
        rows.append((round(moment, 1), "the flow" if alone else "all", step))
        print(*rows[-1], flush=True)
    record_property("moments", json.dumps(rows))
    for _ in range(2):  # once more than needed: the last run has nothing to do
        family = Family()
        with (tmp_path / "last.log").open("w") as log:
            status = start(folder, family, log).wait(280)
        assert status == 0, (tmp_path / "last.log").read_text()
        assert family.members() == []
    assert contents(folder) == contents(trained[0])
    client = mlflow.MlflowClient(f"sqlite:///{folder}/mlflow.db")
    (run,) = client.search_runs(["1"])
    assert run.info.status == "FINISHED"
    (version,) = client.search_model_versions("name='rsna-retinanet'")
    assert version.run_id == run.info.run_id
    model = client.get_registered_model("rsna-retinanet")
    assert model.aliases == {"champion": version.version, "challenger": version.version}
    assert len(json.loads(model.tags["champions"])) == 1
    assert all((path / "ended").exists() for path in Path(folder, "checkpoints").iterdir())
    assert temporary_files(folder) == temporary_files(trained[0])
