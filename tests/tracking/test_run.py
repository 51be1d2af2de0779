import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from flows.servers import mlflow_server
from pipeline.errors import UserError
from pipeline.tracking import MODEL_NAME, DataVersion, download_model, run_place, tracked_run
from pipeline.tracking.outbox import Outbox
from pipeline.tracking.uploader import deliver
from tests.waiting import wait_until

TAGS = {"git_commit": "abc"}


def test_the_time_between_two_values(client):
    with tracked_run(None, TAGS) as run:
        assert run.seconds_between_values("train/loss") is None
        run.log_metrics({"train/loss": 2}, step=0)
        time.sleep(1.1)
        run.log_metrics({"train/loss": 1}, step=1)
        assert run.wait_until_sent(20)
        assert 1 <= run.seconds_between_values("train/loss") < 20


def test_a_run_that_ends_is_finished(client):
    with tracked_run(None, TAGS) as run:
        run.log_params({"loss": {"alpha": 0.25}, "sizes": [8, 8]})
        run.log_metrics({"train/loss": 1.5, "not/defined": None}, step=3)
    stored = client.get_run(run.run_id)
    assert stored.info.status == "FINISHED"
    assert stored.data.params == {"loss.alpha": "0.25", "sizes": "[8, 8]"}
    assert stored.data.metrics == {"train/loss": 1.5}
    assert stored.data.tags["git_commit"] == "abc"


@pytest.mark.parametrize(
    ("error", "status"), [(RuntimeError, "FAILED"), (UserError, "FAILED"), (KeyboardInterrupt, "KILLED")]
)
def test_a_run_that_fails_is_not_finished(client, error, status):
    with pytest.raises(error), tracked_run(None, TAGS) as run:
        run.log_metrics({"train/loss": 1}, step=0)
        raise error("x")
    stored = client.get_run(run.run_id)
    assert stored.info.status == status
    assert stored.data.metrics == {"train/loss": 1}


SCRIPT = """
import time
from pipeline.errors import run_main
from pipeline.tracking import tracked_run
def main():
    with tracked_run(None, {}) as run:
        print(run.run_id, flush=True)
        time.sleep(60)
run_main(main)
"""


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGTERM, "KILLED"), (signal.SIGINT, "KILLED"), (signal.SIGKILL, "RUNNING")]
)
def test_signals(client, number, status):
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    run_id = process.stdout.readline().strip()
    process.send_signal(number)
    _, errors = process.communicate(timeout=20)
    assert client.get_run(run_id).info.status == status
    assert "Traceback" not in errors
    # The next run corrects the status that the first one was left with.
    with tracked_run(None, {}):
        pass
    assert client.get_run(run_id).info.status == ("FAILED" if status == "RUNNING" else status)


def test_runs_of_living_processes_and_other_machines_are_left_alone(client):
    with tracked_run(None, {}) as run:
        pass
    for tags in ({"pneumoflow.pid": str(os.getppid())}, {"pneumoflow.host": "elsewhere", "pneumoflow.pid": "1"}):
        client.update_run(run.run_id, status="RUNNING")
        for key, value in tags.items():
            client.set_tag(run.run_id, key, value)
        assert psutil.pid_exists(os.getppid())
        with tracked_run(None, {}):
            pass
        assert client.get_run(run.run_id).info.status == "RUNNING"


def test_a_resumed_run_has_each_step_once(client):
    with tracked_run(None, {}) as run:
        for step in range(4):
            run.log_metrics({"train/loss": step}, step)
    with tracked_run(run.run_id, {}) as again:
        for step in range(2, 6):
            again.log_metrics({"train/loss": step}, step)
    history = client.get_metric_history(run.run_id, "train/loss")
    assert sorted(metric.step for metric in history) == list(range(6))
    assert client.get_run(run.run_id).info.status == "FINISHED"


def test_the_duration_of_a_run_is_without_the_time_between_its_parts(client):
    hour = 3_600_000
    now = int(time.time() * 1000)
    made = client.create_run(client.create_experiment("earlier"), start_time=now - 5 * hour)
    client.set_terminated(made.info.run_id, "FINISHED", now - 4 * hour)
    for _ in range(2):
        with tracked_run(made.info.run_id, {}):
            pass
    ended = client.get_run(made.info.run_id).info
    assert hour <= ended.end_time - ended.start_time < hour + 60_000


def test_a_run_of_another_store_gets_a_new_one(client, caplog):
    with tracked_run("0" * 32, {}) as run:
        pass
    assert run.run_id != "0" * 32
    assert "is not in" in caplog.text


def test_an_unusable_store_is_one_line(monkeypatch, tmp_path):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:////proc/nowhere/mlflow.db")
    with pytest.raises((UserError, OSError)), tracked_run(None, {}):
        pass


def test_where_a_run_is(monkeypatch):
    with tracked_run(None, {}) as run:
        pass
    assert run.run_id in run_place(run.run_id)
    assert "make ui" in run_place(run.run_id)
    with pytest.raises(UserError, match="no such model"):
        download_model(f"models:/{MODEL_NAME}@champion")


@pytest.fixture
def server(tmp_path, monkeypatch):
    """Start and stop a real MLflow server over one store, at one address: ``with server():``."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]

    @contextmanager
    def run():
        with monkeypatch.context() as patch:
            patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
            context = mlflow_server(port)
            url = context.__enter__()
        try:
            yield url
        finally:
            context.__exit__(None, None, None)

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
    return run


def steps_of(client, run_id):
    return [(metric.step, metric.value) for metric in client.get_metric_history(run_id, "train/loss")]


@pytest.mark.long
def test_a_server_that_goes_and_comes_back_misses_nothing(server, client, caplog):
    up = server()
    up.__enter__()
    with tracked_run(None, {}) as run:
        for step in range(10):
            run.log_metrics({"train/loss": step}, step)
        wait_until(lambda: len(steps_of(client, run.run_id)) == 10)
        up.__exit__(None, None, None)
        longest = 0.0
        for step in range(10, 1500):
            before = time.perf_counter()
            run.log_metrics({"train/loss": step, "train/lr": step / 2}, step)
            longest = max(longest, time.perf_counter() - before)
        assert longest < 0.5  # a dead server delays no call
        wait_until(lambda: "they wait on disk" in caplog.text)
        assert len(steps_of(client, run.run_id)) == 10
        up = server()
        up.__enter__()
        run.log_metrics({"train/loss": 1500}, 1500)
    up.__exit__(None, None, None)
    assert sorted(steps_of(client, run.run_id)) == [(step, step) for step in range(1501)]
    assert client.get_run(run.run_id).info.status == "FINISHED"
    assert not Path(".pneumoflow/spool", run.run_id).exists()


@pytest.mark.long
def test_what_a_run_could_not_deliver_is_delivered_by_sync(server, client, run, caplog, tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.tracking.run._LAST_WAIT", {"FINISHED": 3.0})
    with server(), tracked_run(None, {}) as tracked:
        tracked.log_metrics({"train/loss": 0}, 0)
        wait_until(lambda: steps_of(client, tracked.run_id))
        first = tracked.run_id
    assert steps_of(client, first) == [(0, 0)]
    up = server()
    up.__enter__()
    with tracked_run(None, {}) as tracked:
        up.__exit__(None, None, None)
        for step in range(20):
            tracked.log_metrics({"train/loss": step}, step)
    assert "`pneumoflow sync` delivers them" in caplog.text
    assert client.get_run(tracked.run_id).info.status == "RUNNING"
    done = run("pipeline.cli", "sync", cwd=tmp_path)
    assert done.returncode == 1
    assert "could not be delivered and wait on this disk" in done.stderr
    assert "Traceback" not in done.stderr
    with server():
        done = run("pipeline.cli", "sync", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert "21 entries delivered" in done.stdout
        assert "0 entries delivered" in run("pipeline.cli", "sync", cwd=tmp_path).stdout
    assert steps_of(client, tracked.run_id) == [(step, step) for step in range(20)]
    assert client.get_run(tracked.run_id).info.status == "FINISHED"


def test_a_corrected_value_replaces_the_noted_one_and_an_equal_one_is_not_noted_again(client):
    with tracked_run(None, {}) as run:
        run.log_metrics({"val/nms_thresh": 0.3, "val/box_shrink": 0.1}, 12)
    for shrink in (0.1, 0.2):
        with tracked_run(run.run_id, {}) as again:
            again.log_metrics({"val/nms_thresh": 0.3, "val/box_shrink": shrink}, 12, correct=True)
            again.log_metrics({"val/nms_thresh": 0.9}, 3, correct=True)  # an earlier step stays
    assert values_of(client, run.run_id, "val/nms_thresh") == [(12, 0.3)]
    assert values_of(client, run.run_id, "val/box_shrink") == [(12, 0.1), (12, 0.2)]
    assert client.get_run(run.run_id).data.metrics["val/box_shrink"] == 0.2


def values_of(client, run_id, key):
    history = client.get_metric_history(run_id, key)
    return [(metric.step, metric.value) for metric in sorted(history, key=lambda metric: metric.timestamp)]


def test_a_store_that_got_a_batch_twice_has_each_metric_once(client):
    with tracked_run(None, {}) as run:
        pass
    outbox = Outbox(run.run_id)
    outbox.append(
        [{"key": "train/loss", "value": 0.5 * step, "timestamp": 1000 + step, "step": step} for step in range(5)]
    )
    for _ in range(2):
        assert deliver(client, outbox) == 5
        (Path(".pneumoflow/spool") / run.run_id / "delivered").unlink()
    outbox.close(remove=False)
    assert len(steps_of(client, run.run_id)) == 5


def test_what_a_store_refuses_for_good_is_put_aside(client, caplog):
    with tracked_run(None, {}) as run:
        pass
    outbox = Outbox(run.run_id)
    outbox.append([{"key": key, "value": 1.0, "timestamp": 1, "step": 0} for key in ("a", "no\nkey", "b")])
    outbox.append([{"status": "FAILED", "end_time": 1_000_000}])
    deliver(client, outbox)
    assert outbox.waiting == 0
    outbox.close(remove=True)
    stored = client.get_run(run.run_id)
    assert stored.data.metrics == {"a": 1.0, "b": 1.0}
    assert stored.info.status == "FAILED"
    assert stored.info.end_time == 1_000_000  # not the time of the delivery
    assert "are refused by the store" in caplog.text
    assert b"no" in (Path(".pneumoflow/spool") / run.run_id / "damaged.jsonl").read_bytes()
    with tracked_run(None, {}):
        pass


def test_a_run_is_running_until_it_ends(client):
    with tracked_run(None, TAGS) as run:
        run.log_dataset(DataVersion("rsna", "abc.dir", "data/rsna"), {"train": 3, "val": 2})
        with run.system_metrics():
            assert client.get_run(run.run_id).info.status == "RUNNING"
            wait_until(lambda: "system/cpu_utilization_percentage" in client.get_run(run.run_id).data.metrics)
        assert client.get_run(run.run_id).info.status == "RUNNING"
    stored = client.get_run(run.run_id)
    assert stored.info.status == "FINISHED"
    found = {one.dataset.name: {tag.key: tag.value for tag in one.tags} for one in stored.inputs.dataset_inputs}
    assert found["rsna train"] == {"mlflow.data.context": "train", "studies": "3"}
    with tracked_run(run.run_id, TAGS) as again, again.system_metrics():
        wait_until(lambda: len(client.get_metric_history(run.run_id, "system/cpu_utilization_percentage")) > 1)
    steps = [one.step for one in client.get_metric_history(run.run_id, "system/cpu_utilization_percentage")]
    assert sorted(steps) == list(range(len(steps)))


@pytest.mark.parametrize(("age", "status"), [(5, "RUNNING"), (1000, "FAILED")])
def test_a_run_of_another_container_is_judged_by_its_heartbeat(client, age, status):
    """Judge a run with this host's name and a process number that is in use here."""
    with tracked_run(None, {}) as run:
        pass
    client.update_run(run.run_id, status="RUNNING")
    beat = int(time.time()) - age
    tags = {"pid": os.getppid(), "processes": "another boot pid:[7]", "heartbeat": beat}
    for key, value in tags.items():
        client.set_tag(run.run_id, f"pneumoflow.{key}", str(value))
    with tracked_run(None, {}):
        pass
    stored = client.get_run(run.run_id)
    assert stored.info.status == status
    if status == "FAILED":
        assert stored.info.end_time == beat * 1000


def test_a_run_that_was_taken_for_dead_is_running_again(client, monkeypatch):
    monkeypatch.setattr("pipeline.tracking.heartbeat._BEAT_SECONDS", 0.2)
    with tracked_run(None, {}) as run:
        client.set_terminated(run.run_id, "FAILED")
        wait_until(lambda: client.get_run(run.run_id).info.status == "RUNNING")
    assert client.get_run(run.run_id).info.status == "FINISHED"


def test_a_run_closes_silent_ones_while_it_works(client, monkeypatch):
    monkeypatch.setattr("pipeline.tracking.heartbeat._BEAT_SECONDS", 0.1)
    with tracked_run(None, {}) as run:
        pass
    with tracked_run(None, {}):
        client.set_tag(run.run_id, "pneumoflow.processes", "another boot pid:[7]")
        client.set_tag(run.run_id, "pneumoflow.heartbeat", "1000")
        client.update_run(run.run_id, status="RUNNING")
        wait_until(lambda: client.get_run(run.run_id).info.status == "FAILED")


def test_a_deleted_experiment_is_one_line_and_can_be_restored(client):
    with tracked_run(None, {}) as run:
        pass
    experiment = client.get_run(run.run_id).info.experiment_id
    client.delete_experiment(experiment)
    with (
        pytest.raises(UserError, match=f"was deleted there; `mlflow experiments restore --experiment-id {experiment}`"),
        tracked_run(None, {}),
    ):
        pass
    client.restore_experiment(experiment)
    with tracked_run(None, {}):
        pass


def test_a_deleted_run_gets_a_new_one(client, caplog):
    with tracked_run(None, {}) as run:
        pass
    client.delete_run(run.run_id)
    with tracked_run(run.run_id, {}) as other:
        pass
    assert other.run_id != run.run_id
    assert "is not in" in caplog.text


def test_an_empty_address_is_none(client, monkeypatch, tmp_path):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    with tracked_run(None, {}) as run:
        pass
    assert client.get_run(run.run_id).info.status == "FINISHED"
