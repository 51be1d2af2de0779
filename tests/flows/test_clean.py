"""`make clean`: nothing that runs made is left, not in DVC's cache either, and nothing else is gone."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from pipeline.folder_lock import RUN_LOCK, STAGE_LOCKS, only_one
from tests.conftest import REPOSITORY

pytestmark = pytest.mark.slow

LEFT_BY_OTHER_COMMANDS = ("ablation", "crossval", "queue", "scored", "sweep")


def cached(folder):
    return {path.parent.name + path.name for path in Path(folder, ".dvc/cache/files/md5").rglob("*") if path.is_file()}


def made_files(folder):
    """Return the digests of the stages' outputs that are files and that DVC caches."""
    stages = yaml.safe_load((folder / "dvc.lock").read_text())["stages"].values()
    outs = [one for stage in stages for one in stage["outs"] if one["path"] != "reports/headline.json"]
    return {one["md5"] for one in outs if not one["md5"].endswith(".dir")}


@pytest.mark.parametrize("lock", [RUN_LOCK, STAGE_LOCKS / "train.lock"])
def test_a_run_at_work_keeps_its_files(copy, lock):
    shutil.copy(REPOSITORY / "Makefile", copy)
    with only_one(copy / lock, "run"):
        done = subprocess.run(["make", "clean"], cwd=copy, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert f"error: {lock}: another run holds it: process {os.getpid()}" in done.stderr
    assert {"models", "reports", "dvc.lock"} <= {path.name for path in copy.iterdir()}


def test_clean_starts_over(copy):
    shutil.copy(REPOSITORY / "Makefile", copy)
    made = made_files(copy)
    assert made <= cached(copy)
    for name in (*LEFT_BY_OTHER_COMMANDS, "inbox"):
        (copy / name).mkdir()
    done = subprocess.run(["make", "clean"], cwd=copy, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "removed: " in done.stdout
    assert "kept: " in done.stdout
    left = {path.name for path in copy.iterdir()}
    assert left.isdisjoint({*LEFT_BY_OTHER_COMMANDS, "models", "reports", "mlflow.db", "mlruns", "dvc.lock"})
    assert {"inbox", "data", "params.yaml"} <= left
    assert not cached(copy) & made
    status = subprocess.run(["dvc", "status", "data/rsna.dvc"], cwd=copy, capture_output=True, text=True, check=True)
    assert "up to date" in status.stdout
