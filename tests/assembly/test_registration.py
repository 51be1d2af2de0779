"""Results name their model by its weights and its run; a version number has a meaning in one store only."""

import hashlib
import json
from pathlib import Path

import mlflow
import pytest

from pipeline.assembly.registration import NotRegisteredError, log_results, own_version
from pipeline.errors import UserError
from pipeline.jobs.promote import promote
from pipeline.params import load_params
from pipeline.tracking import MODEL_NAME, tracked_run, tracking_uri
from pipeline.tracking.versions import RESULTS_RUN, WEIGHTS

pytestmark = pytest.mark.usefixtures("mlflow_store")
MODELS, REPORTS = Path("models"), Path("reports")


@pytest.fixture
def params(small_params, write_params, monkeypatch):
    monkeypatch.setenv("PNEUMOFLOW_LEASE_SECONDS", "0.05")
    return load_params(write_params(small_params))


@pytest.fixture
def client():
    client = mlflow.MlflowClient(tracking_uri())
    client.create_registered_model(MODEL_NAME)
    return client


def result(weights, run_id, version="1"):
    """Write the files that an evaluation leaves; return the digest of the weights."""
    MODELS.mkdir(exist_ok=True)
    REPORTS.mkdir(exist_ok=True)
    (MODELS / "model.safetensors").write_bytes(weights)
    digest = hashlib.sha256(weights).hexdigest()
    values = {"model": MODEL_NAME, "version": version, "run_id": run_id, "weights_sha256": digest}
    (REPORTS / "registered.json").write_text(json.dumps(values))
    return digest


def enter(client, digest, **tags):
    run = client.create_run("0").info.run_id
    made = client.create_model_version(MODEL_NAME, "models/x", run, tags={WEIGHTS: digest, **tags})
    return str(made.version), run


def test_the_same_number_in_another_store_is_another_model(client, params):
    first = enter(client, result(b"mine", "0" * 32))
    digest = result(b"theirs", "f" * 32, version=first[0])
    with pytest.raises(
        NotRegisteredError, match=f"belong to run {'f' * 32} with the weights {digest[:12]}.*`pneumoflow register`"
    ):
        promote(params)
    assert "champion" not in client.get_registered_model(MODEL_NAME).aliases
    assert not (REPORTS / "promotion.json").exists()
    assert "promotion" not in client.get_model_version(MODEL_NAME, first[0]).tags


def test_the_same_weights_of_another_run_are_another_model(client):
    digest = result(b"same", "f" * 32)
    enter(client, digest)
    with pytest.raises(NotRegisteredError):
        own_version(MODELS, REPORTS)
    number, run = enter(client, digest, **{RESULTS_RUN: "f" * 32})
    found = own_version(MODELS, REPORTS)
    assert (found.version, found.run_id) == (number, run)


def test_a_model_is_found_under_another_number(client, params):
    """DVC has restored an older result, or the store has been set up anew; the alias ``challenger`` has no effect."""
    number, run = enter(client, hashlib.sha256(b"a").hexdigest())
    other, _ = enter(client, "of the newest model")
    client.set_registered_model_alias(MODEL_NAME, "challenger", other)
    result(b"a", run, version="99")
    decision = promote(params)
    assert (decision.challenger, decision.promoted, decision.reasons) == (number, True, ["the first model"])
    assert str(client.get_registered_model(MODEL_NAME).aliases["champion"]) == number
    written = json.loads((REPORTS / "promotion.json").read_text())
    assert (written["run_id"], written["weights_sha256"]) == (run, hashlib.sha256(b"a").hexdigest())
    assert promote(params).reasons == ["it was so before"]


def test_the_files_that_restore_and_monitoring_need_are_logged(client):
    REPORTS.mkdir()
    written = ("headline.json", "metrics.json", "reference.csv", "report.html")
    for name in written:
        (REPORTS / name).touch()
    with tracked_run(None, {}) as run:
        log_results(run, {"test": {"map": 0.54321, "map_low": 0.4, "map_high": None}}, REPORTS)
    assert {one.path for one in client.list_artifacts(run.run_id)} == {*written, "metrics_with_intervals.json"}
    table = mlflow.artifacts.load_dict(f"runs:/{run.run_id}/metrics_with_intervals.json")
    assert table == {"columns": ["metric", "test", "test low", "test high"], "data": [["map", 0.5432, 0.4, ""]]}


def test_results_of_other_weights(client):
    result(b"a", "f" * 32)
    (MODELS / "model.safetensors").write_bytes(b"b")
    with pytest.raises(UserError, match="belong to other weights than models/model.safetensors; `dvc repro evaluate`"):
        own_version(MODELS, REPORTS)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"version": "1"}', '{"run_id": 1, "weights_sha256": 2}', "7"])
def test_a_damaged_file_is_one_line(client, text):
    result(b"a", "f" * 32)
    (REPORTS / "registered.json").write_text(text)
    rule = "not JSON|must be a JSON object|does not name its model"
    with pytest.raises(UserError, match=rf"^reports/registered.json: ({rule})[^\n]*$"):
        own_version(MODELS, REPORTS)


def test_no_results_and_no_model(client):
    with pytest.raises(UserError, match=r"registered.json: no such file; run `dvc repro evaluate` first"):
        own_version(MODELS, REPORTS)
    result(b"a", "f" * 32)
    (MODELS / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"model.safetensors: no such file"):
        own_version(MODELS, REPORTS)


def test_a_champion_that_was_deleted_is_not_replaced_without_a_word(client, params):
    number, run = enter(client, result(b"a", "x"))
    result(b"a", run)
    promote(params)
    _, run = enter(client, result(b"b", "x"))
    result(b"b", run)
    client.delete_model_version(MODEL_NAME, number)
    before = (REPORTS / "promotion.json").read_bytes()
    with pytest.raises(UserError, match=f"version {number} of {MODEL_NAME} was the champion"):
        promote(params)
    assert (REPORTS / "promotion.json").read_bytes() == before
    decision = promote(params, force="the other one is gone")
    assert decision.promoted
    assert str(client.get_registered_model(MODEL_NAME).aliases["champion"]) == decision.challenger
