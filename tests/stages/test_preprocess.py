"""Preprocessing that is killed, scaled out, and given files that decoders cannot cope with."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from pipeline.data.annotations import CLASSES, GROUPS, IMAGES, LABELS
from pipeline.data.parallel import Workers, require_shared
from pipeline.data.settings import Preprocessing
from pipeline.data.shards import ShardJob, Study, preprocess_shards
from pipeline.errors import UserError
from tests.waiting import wait_until

STAGE = [sys.executable, "-m", "pipeline.stages.preprocess"]


@pytest.fixture
def start(rsna, small_params, write_params, repository, tmp_path):
    """Return a function that starts the stage in a process with changed params: ``start(preprocess={...})``."""

    def call(**sections):
        for section, values in sections.items():
            small_params[section] |= values
        write_params(small_params)
        environment = {**os.environ, "PYTHONPATH": str(repository)}
        return subprocess.Popen(STAGE, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True)

    return call


@pytest.fixture
def prepare(start):
    """Return a function that runs the stage to its end and returns (exit code, stderr)."""

    def call(**sections):
        process = start(**sections)
        _, errors = process.communicate(timeout=200)
        return process.returncode, errors

    return call


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def shards(folder):
    """Return name -> time of writing of each whole shard; a shard may vanish during the look-up."""
    found = {}
    for path in folder.glob("[!.]*.npy"):
        with contextlib.suppress(FileNotFoundError):
            found[path.name] = path.stat().st_mtime_ns
    return found


@pytest.mark.slow
def test_a_killed_run_goes_on_where_it_was(start, prepare, tmp_path):
    many = {"shard_size": 2, "image_size": 1024, "workers": 1}
    process = start(preprocess=many)
    parts = tmp_path / "data/.prepared.parts"
    wait_until(lambda: len(list(parts.glob("*.json"))) >= 8, pause=0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = {name: time for name, time in shards(parts).items() if (parts / name).with_suffix(".json").exists()}
    assert 8 <= len(done) < 30
    assert not (tmp_path / "data/prepared").exists()

    again = start(preprocess=many)
    made = set()

    def look():
        made.update(name for name, time in shards(parts).items() if time not in done.values())
        return again.poll() is not None

    wait_until(look, pause=0.005)
    assert again.returncode == 0, again.stderr.read()
    assert not made & done.keys()  # no finished shard was made again
    assert not parts.exists()
    resumed = contents(tmp_path / "data/prepared")
    shutil.rmtree(tmp_path / "data/prepared")
    assert prepare()[0] == 0
    assert contents(tmp_path / "data/prepared") == resumed


def test_other_params_use_nothing_of_a_killed_run(start, prepare, tmp_path):
    process = start(preprocess={"shard_size": 2, "image_size": 512, "workers": 1})
    wait_until(lambda: len(list((tmp_path / "data/.prepared.parts").glob("*.json"))) >= 3, pause=0.005)
    process.kill()
    process.wait()
    assert prepare(preprocess={"shard_size": 2, "image_size": 128})[0] == 0
    shards = sorted((tmp_path / "data/prepared").glob("*.npy"))
    assert len(shards) == 30
    assert {np.load(shard).shape for shard in shards} == {(2, 128, 128)}


@pytest.mark.slow
def test_a_study_that_hangs_its_decoder_is_a_problem_alone(rsna, tmp_path):
    """The study is a pipe without a writer: reading it never ends, and Python cannot change that."""
    paths = sorted((rsna / IMAGES).iterdir())[:3]
    os.mkfifo(tmp_path / "pipe.dcm")
    studies = tuple(Study(path.stem, path, np.zeros((0, 4))) for path in [*paths[:2], tmp_path / "pipe.dcm", paths[2]])
    job = ShardJob(tmp_path / "shard.npy", studies, Preprocessing(64, 0, (1, 1), ("clahe",)), 1.5)
    (result,) = preprocess_shards([job], Workers(1), "Preparing")
    assert list(result.problems) == ["pipe"]
    assert "longer than 1.5 s (data.study_seconds)" in result.problems["pipe"]
    assert [row["patientId"] for row in result.rows] == [path.stem for path in paths]


def test_a_pipe_is_not_opened(prepare, rsna, tmp_path):
    path = sorted((rsna / IMAGES).iterdir())[7]
    path.unlink()
    os.mkfifo(path)
    code, errors = prepare(data={"max_bad_fraction": 0.05})
    assert code == 0, errors
    found = pd.read_csv(tmp_path / "reports/quarantine.csv")
    assert found["patientId"].to_list() == [path.stem]
    assert f"'{path.name}' is a pipe (FIFO)" in found["reason"][0]


def test_studies_at_the_end_of_a_long_table_leave_most_shards_alone(prepare, rsna, tmp_path):
    assert prepare(preprocess={"shard_size": 4})[0] == 0
    before = contents(tmp_path / "data/prepared")
    source = sorted((rsna / IMAGES).iterdir())[0]
    for number in range(3):
        new = f"later-{number}"
        shutil.copy(source, rsna / IMAGES / f"{new}.dcm")
        for name, line in ((LABELS, f"{new},,,,,0"), (CLASSES, f"{new},Normal"), (GROUPS, f"{new},{new}")):
            with (rsna / name).open("a") as file:
                file.write(line + "\n")
    assert prepare()[0] == 0
    after = contents(tmp_path / "data/prepared")
    shards = [name for name in before if name.endswith(".npy")]
    assert len(shards) == 15
    assert all(before[name] == after[name] for name in shards)
    assert set(after) - set(before) == {"images-00015.npy"}


@pytest.fixture
def cluster(repository, tmp_path):
    """Start a Dask scheduler and two workers in processes and a folder of their own; yield (address, the workers)."""
    environment = {**os.environ, "PYTHONPATH": str(repository)}
    dask, file = [sys.executable, "-m", "dask"], tmp_path / "scheduler.json"
    scheduler = [*dask, "scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--scheduler-file", file]
    worker = [*dask, "worker", "--scheduler-file", file, "--nthreads", "1", "--no-dashboard", "--host", "127.0.0.1"]
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    quiet = {"env": environment, "stderr": subprocess.DEVNULL, "start_new_session": True, "cwd": elsewhere}
    processes = [subprocess.Popen(scheduler, **quiet)]
    try:
        wait_until(lambda: file.exists() and file.read_text(), pause=0.005)
        processes += [subprocess.Popen(worker, **quiet) for _ in range(2)]
        yield json.loads(file.read_text())["address"], processes[1:]
    finally:
        for process in processes:
            with contextlib.suppress(ProcessLookupError):  # the test has killed it
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@pytest.mark.slow
def test_dask_gives_the_same_bytes_though_a_worker_is_killed(cluster, start, prepare, tmp_path):
    address, workers = cluster
    shards = {"shard_size": 1, "image_size": 1024}
    process = start(preprocess={**shards, "executor": "dask", "scheduler": address})
    parts = tmp_path / "data/.prepared.parts"
    wait_until(lambda: len(list(parts.glob("*.json"))) >= 5, pause=0.005)
    assert len(list(parts.glob("*.json"))) < 60
    os.killpg(workers[0].pid, signal.SIGKILL)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    scaled = contents(tmp_path / "data/prepared")
    assert prepare(preprocess={**shards, "executor": "processes"})[0] == 0
    assert contents(tmp_path / "data/prepared") == scaled


@pytest.mark.slow
def test_a_worker_without_the_files_is_named(cluster, tmp_path, monkeypatch):
    workers = Workers(scheduler=cluster[0])
    require_shared(workers, [tmp_path])
    gone = tmp_path / "not mounted"
    with pytest.raises(UserError, match=f"worker tcp://127.0.0.1:.* has no folder {gone}; all workers need"):
        require_shared(workers, [tmp_path, gone])
    monkeypatch.setattr("pipeline.data.parallel._JOIN_SECONDS", 0.5)
    for worker in cluster[1]:
        os.killpg(worker.pid, signal.SIGKILL)
        worker.wait()
    with pytest.raises(UserError, match="no worker has joined within 0.5 seconds"):
        require_shared(workers, [tmp_path])
    # The scheduler still counts a worker whose connection has just ended: nobody answers.
    monkeypatch.setattr("distributed.Client.wait_for_workers", lambda *_, **__: None)
    with pytest.raises(UserError, match="no worker has joined within 0.5 seconds"):
        require_shared(workers, [tmp_path])
