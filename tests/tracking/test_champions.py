"""Promotion and rollback of champions, whatever has been deleted and whichever processes work at the same time."""

import json
import subprocess
import sys
import time

import pytest

from pipeline.errors import UserError
from pipeline.tracking import (
    ChampionChangedError,
    ChampionGoneError,
    Registered,
    find_version,
    make_champion,
    registered_champion,
    roll_back,
)
from pipeline.tracking.versions import MODEL_NAME, RESULTS_RUN, WEIGHTS
from tests.conftest import REPOSITORY


@pytest.fixture(autouse=True)
def _quickly(monkeypatch):
    monkeypatch.setenv("PNEUMOFLOW_LEASE_SECONDS", "0.05")
    monkeypatch.setenv("PNEUMOFLOW_PATIENCE", "0.5")


@pytest.fixture
def version(client):
    """Register a version, without files: ``version(weights)``."""
    client.create_registered_model(MODEL_NAME)
    experiment = client.create_experiment("models")

    def make(weights, **tags):
        run = client.create_run(experiment).info.run_id
        made = client.create_model_version(MODEL_NAME, f"models/{weights}", run, tags={WEIGHTS: weights, **tags})
        return Registered(str(made.version), run, weights)

    return make


def champions(client):
    return [one["version"] for one in json.loads(client.get_registered_model(MODEL_NAME).tags["champions"])]


def alias(client):
    number = client.get_registered_model(MODEL_NAME).aliases.get("champion")
    return None if number is None else str(number)


def test_one_after_another_and_back(client, version):
    assert registered_champion() is None
    first, second, third = version("a"), version("b"), version("c")
    make_champion(first, "the first model", None)
    make_champion(second, "better", first)
    make_champion(third, "better still", second)
    assert registered_champion() == third
    assert champions(client) == ["1", "2", "3"]
    assert client.get_model_version(MODEL_NAME, "3").tags["promotion_reasons"] == "better still"
    assert roll_back() == ("3", "2")
    assert registered_champion() == second
    assert champions(client) == ["1", "2"]
    assert "rolled back" in client.get_model_version(MODEL_NAME, "3").tags["promotion_reasons"]
    assert not [key for key in client.get_registered_model(MODEL_NAME).tags if key != "champions"]


def test_nobody_takes_the_place_of_a_champion_that_was_not_compared_with(client, version):
    first, second, third = version("a"), version("b"), version("c")
    make_champion(first, "the first model", None)
    make_champion(second, "better", first)
    before = client.get_registered_model(MODEL_NAME).tags
    for former in (first, None):
        with pytest.raises(ChampionChangedError, match="version 2 is the champion"):
            make_champion(third, "better than another one", former)
    assert alias(client) == "2"
    assert client.get_registered_model(MODEL_NAME).tags == before
    assert "promotion" not in client.get_model_version(MODEL_NAME, "3").tags


SCRIPT = """
import sys
from pipeline.tracking import Registered, make_champion
from pipeline.tracking.champions import ChampionChangedError
sys.stdin.readline()
try:
    make_champion(Registered(*sys.argv[1:4]), "the first model", None)
    print("promoted")
except ChampionChangedError as error:
    print("too late")
"""


def test_of_several_first_models_at_once_one_becomes_champion(client, version, monkeypatch):
    monkeypatch.setenv("PNEUMOFLOW_LEASE_SECONDS", "1")
    monkeypatch.setenv("PNEUMOFLOW_PATIENCE", "30")
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    made = [version(name) for name in "abc"]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, one.version, one.run_id, one.weights_sha256],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        for one in made
    ]  # fmt: skip
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    said = [process.communicate(timeout=120)[0].strip() for process in processes]
    assert sorted(said) == ["promoted", "too late", "too late"]
    assert alias(client) == made[said.index("promoted")].version
    assert champions(client) == [alias(client)]


def test_the_mark_of_a_killed_promotion_is_taken_over(client, version, monkeypatch):
    monkeypatch.setattr("pipeline.tracking.lease._DEAD_SECONDS", 0.5)
    first = version("a")
    client.set_registered_model_tag(MODEL_NAME, "pneumoflow.promotion", "of a process that was killed")
    make_champion(first, "the first model", None)
    assert alias(client) == "1"
    assert "pneumoflow.promotion" not in client.get_registered_model(MODEL_NAME).tags


def test_a_champion_that_was_deleted_is_no_reason_to_crown_the_next(client, version):
    first, second, third = version("a"), version("b"), version("c")
    make_champion(first, "the first model", None)
    make_champion(second, "better", first)
    client.delete_model_version(MODEL_NAME, "2")
    assert alias(client) is None
    with pytest.raises(ChampionGoneError, match="version 2 of rsna-retinanet was the champion.*--rollback.*--force"):
        registered_champion()
    assert roll_back() == ("2", "1")
    assert registered_champion() == first
    make_champion(third, "better", first)
    assert champions(client) == ["1", "3"]


def test_back_to_a_version_that_was_deleted(client, version, caplog):
    first, second, third = version("a"), version("b"), version("c")
    make_champion(first, "the first model", None)
    make_champion(second, "better", first)
    make_champion(third, "better", second)
    client.delete_model_version(MODEL_NAME, "2")
    assert roll_back() == ("3", "1")
    assert "version 2 was deleted, and is skipped" in caplog.text
    make_champion(third, "again", first)
    client.delete_model_version(MODEL_NAME, "1")
    with pytest.raises(UserError, match="there is none to go back to"):
        roll_back()
    assert alias(client) == "3"
    assert champions(client) == ["1", "3"]


def test_a_deleted_version_does_not_become_champion(client, version):
    first, second = version("a"), version("b")
    make_champion(first, "the first model", None)
    client.delete_model_version(MODEL_NAME, "2")
    with pytest.raises(UserError, match="version 2 of rsna-retinanet was deleted; nothing was changed"):
        make_champion(second, "better", first)
    assert champions(client) == ["1"] == [alias(client)]


def test_a_kill_between_alias_and_list_and_a_change_by_hand_are_put_right(client, version):
    first, second, third = version("a"), version("b"), version("c")
    make_champion(first, "the first model", None)
    client.set_registered_model_alias(MODEL_NAME, "champion", "2")
    make_champion(third, "better", second)
    assert champions(client) == ["1", "2", "3"]
    client.set_registered_model_alias(MODEL_NAME, "champion", "1")
    make_champion(third, "better", first)
    assert champions(client) == ["1", "3"]


@pytest.mark.parametrize("text", ["{", "7", '["1"]', '[{"at": "1"}]'])
def test_a_damaged_list_is_one_line_and_is_kept(client, version, text):
    first, second = version("a"), version("b")
    make_champion(first, "the first model", None)
    client.set_registered_model_tag(MODEL_NAME, "champions", text)
    with pytest.raises(UserError, match="tag champions of rsna-retinanet"):
        make_champion(second, "better", first)
    assert client.get_registered_model(MODEL_NAME).tags["champions"] == text
    assert alias(client) == "1"


@pytest.mark.long
def test_long_reasons_and_many_champions_fit(client, version):
    first, second = version("a"), version("b")
    former, other = None, (first, second)
    for _ in range(30):
        make_champion(other[0], "Größe " * 2000, former)
        former, other = other[0], (other[1], other[0])
    assert alias(client) == former.version
    kept = champions(client)
    assert 15 < len(kept) < 30
    assert roll_back() == (kept[-1], kept[-2])


def test_a_version_is_known_by_its_weights_and_its_run(client, version):
    first, other = version("a"), version("b")
    assert find_version("a", first.run_id) == first
    assert find_version("a", other.run_id) is None
    assert find_version("b", first.run_id) is None
    again = version("a", **{RESULTS_RUN: first.run_id})
    assert find_version("a", first.run_id) == again
    assert find_version("a", again.run_id) == again


@pytest.mark.parametrize("address", ["sqlite:////proc/nowhere/mlflow.db", "postgresql://me:GeHeim1@127.0.0.1:1/x"])
def test_a_store_that_cannot_be_asked_is_not_an_empty_one(monkeypatch, address):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    monkeypatch.setenv("PNEUMOFLOW_PATIENCE", "1")
    started = time.monotonic()
    for call in (registered_champion, roll_back, lambda: find_version("a", "b")):
        with pytest.raises(UserError) as caught:
            call()
        assert "GeHeim1" not in str(caught.value)
        assert "\n" not in str(caught.value)
    assert time.monotonic() - started < 60


def test_a_store_of_a_newer_mlflow_is_not_an_empty_one(client, version, tmp_path):
    import sqlite3

    make_champion(version("a"), "the first model", None)
    with sqlite3.connect(tmp_path / "mlflow.db") as connection:
        connection.execute("UPDATE alembic_version SET version_num = 'ffffffffffff'")
    script = "from pipeline.tracking import registered_champion as r; from pipeline.errors import run_main; run_main(r)"
    done = subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1, done.stderr
    assert "ffffffffffff" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
