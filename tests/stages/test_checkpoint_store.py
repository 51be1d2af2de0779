"""A training whose machine is gone is taken up by another one, from the copies of its checkpoints."""

import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import mlflow
import pytest
from safetensors.torch import load_file

from pipeline.errors import UserError
from pipeline.params import Params
from pipeline.stages.preprocess import preprocess
from pipeline.stages.split import split
from pipeline.stages.train import train
from pipeline.tracking import TRAINING, copied_checkpoints, fetch_copies, find_copies, sync_left_behind, tracked_run
from pipeline.tracking.outbox import Outbox
from tests.conftest import project_environment
from tests.stages.test_train_resume import history
from tests.waiting import wait_until


@pytest.mark.slow
def test_another_machine_goes_on_to_the_same_numbers(small_params, rsna, tmp_path, write_params):
    small_params["train"] |= {"epochs": 4, "batch_size": 4, "checkpoint_steps": 1, "checkpoint_store": 0.01}
    preprocess(Params.model_validate(small_params))
    split(Params.model_validate(small_params))
    hosts = {}
    for name in ("whole", "first", "second"):
        hosts[name] = tmp_path / name / "project"
        shutil.copytree(tmp_path / "data", hosts[name] / "data")
        write_params(small_params, hosts[name] / "params.yaml")

    def start(name, store):
        environment = project_environment(hosts[name], MLFLOW_TRACKING_URI=f"sqlite:///{tmp_path}/{store}/mlflow.db")
        command = [sys.executable, "-m", "pipeline.stages.train"]
        return subprocess.Popen(command, cwd=hosts[name], env=environment, stderr=subprocess.PIPE, text=True)

    (tmp_path / "shared").mkdir()
    first = start("first", "shared")
    wait_until(lambda: copies(tmp_path / "shared"), 120, process=first)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    second = start("second", "shared")
    said = second.communicate(timeout=250)[1]
    assert second.returncode == 0, said
    assert "taking up MLflow run " in said
    step, epoch = re.search(r"continuing with step (\d+) of epoch (\d+)", said).groups()
    assert int(step) + int(epoch) > 2
    whole = start("whole", "whole")
    assert whole.wait(250) == 0, whole.communicate()
    weights, wanted = (load_file(hosts[name] / "models/model.safetensors") for name in ("second", "whole"))
    assert all((weights[name] == value).all() for name, value in wanted.items())
    assert history(tmp_path / "shared") == history(tmp_path / "whole")
    assert copies(tmp_path / "shared") == copies(tmp_path / "whole") == []


@pytest.mark.slow
def test_copies_stay_until_the_model_is_written(small_params, rsna, mlflow_store, monkeypatch):
    small_params["train"] |= {"epochs": 1, "checkpoint_store": 0.005}
    params = Params.model_validate(small_params)
    preprocess(params)
    split(params)

    def machine_is_lost(*_):
        wait_until(lambda: copies(Path()), 30)
        raise KeyError

    monkeypatch.setattr("pipeline.stages.train.finish", machine_is_lost)
    with pytest.raises(KeyError):
        train(params)
    assert copies(Path())


def copies(folder):
    """Return the names of the whole copies that the store's only run has."""
    return sorted(path.parent.name for path in folder.glob("mlruns/**/artifacts/checkpoints/*/copied"))


def run_with_copies(names):
    with tracked_run(None, {TRAINING: "abc"}) as run:
        for name in names:
            run.log_text("weights", f"checkpoints/{name}/{name}/state.pt")
            run.log_text("", f"checkpoints/{name}/copied")
        run.log_text("weights", "checkpoints/step-00000009/step-00000009/state.pt")  # a copy that was interrupted
    return run.run_id


def test_only_a_run_that_did_not_finish_is_taken_up(mlflow_store):
    assert find_copies("abc") is None
    run_id = run_with_copies(["step-00000004"])
    assert find_copies("abc") is None
    client = mlflow.MlflowClient()
    client.set_terminated(run_id, "FAILED")
    assert find_copies("abc") == run_id
    assert find_copies("abd") is None
    fetch_copies(run_id, Path("checkpoints"))
    assert [path.name for path in Path("checkpoints").rglob("*")] == ["step-00000004", "state.pt"]
    client.delete_run(run_id)
    assert find_copies("abc") is None


def test_two_machines_do_not_train_the_same(mlflow_store):
    run_id = run_with_copies([])
    client = mlflow.MlflowClient()
    client.update_run(run_id, status="RUNNING")
    client.set_tag(run_id, "pneumoflow.processes", "those of another machine")
    client.set_tag(run_id, "pneumoflow.host", "gpu2")
    with pytest.raises(UserError, match=f"run {run_id} on gpu2 is the same training, and is at work; wait for it"):
        find_copies("abc", wait_seconds=0)
    client.set_tag(run_id, "pneumoflow.heartbeat", "1")
    assert find_copies("abc", wait_seconds=0) is None
    assert client.get_run(run_id).info.status == "FAILED"


def test_the_last_two_are_kept_and_a_store_that_fails_is_only_a_warning(mlflow_store, tmp_path, caplog):
    calls = []

    def snapshot(folder):
        calls.append(f"step-{len(calls):08d}")
        (folder / "state.pt").write_text(calls[-1])
        return calls[-1]

    with tracked_run(None, {}) as run, pytest.raises(KeyError), copied_checkpoints(run, tmp_path, snapshot, 0.001):
        wait_until(lambda: len(calls) > 4)
        raise KeyError
    client = mlflow.MlflowClient()
    kept = [one.path for one in client.list_artifacts(run.run_id, "checkpoints")]
    assert kept[0] >= "checkpoints/step-00000002"
    assert len(kept) in (2, 3)  # the end may have come between a copy and the removal of the oldest
    for path in kept:
        (file,) = (one for one in client.list_artifacts(run.run_id, path) if one.path.endswith("state.pt"))
        assert Path(client.download_artifacts(run.run_id, file.path)).read_text() == Path(path).name

    def refuse(_):
        raise ConnectionError("Connection refused")

    with copied_checkpoints(run, tmp_path, refuse, 0.001):
        wait_until(lambda: "copying a checkpoint: Connection refused" in caplog.text, 20)
    assert client.list_artifacts(run.run_id, "checkpoints") == []


def test_steps_that_another_machine_has_noted_since_are_not_sent_again(mlflow_store):
    now = int(time.time() * 1000)
    with tracked_run(None, {}) as run:
        for step in range(3):
            run.log_metrics({"train/loss": step}, step)
    outbox = Outbox(run.run_id)
    entries = [{"key": "train/loss", "value": 9.0, "timestamp": now - 1000, "step": step} for step in range(5)]
    # A value that was corrected after the run had noted the step is newer than the store's.
    outbox.append([*entries, {"key": "train/loss", "value": 7.0, "timestamp": now + 10**6, "step": 0}])
    outbox.close(remove=False)
    sync_left_behind()
    noted = mlflow.MlflowClient().get_metric_history(run.run_id, "train/loss")
    assert sorted((one.step, one.value) for one in noted) == [(0, 0), (0, 7), (1, 1), (2, 2), (3, 9), (4, 9)]
