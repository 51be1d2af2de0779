"""Failures of a server, or of the connection to it, during a promotion: they never count as "there is none"."""

import contextlib
import datetime as dt
import http.server
import ipaddress
import json
import ssl
import threading
import time
from pathlib import Path

import mlflow
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from flows.servers import mlflow_server
from pipeline.errors import UserError
from pipeline.tracking import (
    ChampionChangedError,
    Registered,
    download_model,
    find_version,
    make_champion,
    registered_champion,
    require_registry,
    require_rights,
    roll_back,
    sync_left_behind,
    tracked_run,
)
from pipeline.tracking.outbox import OUTBOX
from pipeline.tracking.versions import MODEL_NAME, WEIGHTS
from tests.flows.conftest import free_port

pytestmark = pytest.mark.slow

REFUSALS = ["403", pytest.param("401", marks=pytest.mark.long)]
MOMENTS = ["503", "empty"]
MOMENTS += [
    pytest.param(kind, marks=pytest.mark.long) for kind in ("404", "500", "cut off", "slow", "truncated", "half")
]
KINDS = [*REFUSALS, *MOMENTS]
READS = {
    "model": "GET .*registered-models/get",
    "version": "GET .*model-versions/get",
}
WRITES = [
    "registered-models/set-tag",
    "registered-models/alias",
    "model-versions/set-tag",
    "registered-models/delete-tag",
]


@pytest.fixture(scope="module")
def server(tmp_path_factory, empty_store):
    """Start a real MLflow server over a store of its own; yield its URL and a client of the store."""
    folder = tmp_path_factory.mktemp("server")
    (folder / "mlflow.db").write_bytes(empty_store.read_bytes())
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
        with mlflow_server(free_port()) as url:
            yield url, mlflow.MlflowClient(f"sqlite:///{folder}/mlflow.db")


@pytest.fixture
def self_signed_server(tmp_path):
    """Start an HTTPS server with a certificate of its own making; yield its URL."""
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    make_certificate(key, certificate)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as made:
        made.socket = context.wrap_socket(made.socket, server_side=True)
        threading.Thread(target=made.serve_forever, daemon=True).start()
        yield f"https://127.0.0.1:{made.server_port}"
        made.shutdown()


def make_certificate(key_file, certificate_file):
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = dt.datetime.now(dt.UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False)
        .sign(key, hashes.SHA256())
    )
    certificate_file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    key_file.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )


@pytest.fixture
def store(server, make_proxy, monkeypatch):
    """Register versions 1 (champion) and 2; yield (proxy of the server, client that bypasses it, versions)."""
    url, client = server
    client.create_registered_model(MODEL_NAME)
    versions = []
    for weights in "ab":
        run = client.create_run("0").info.run_id
        made = client.create_model_version(MODEL_NAME, f"models/{weights}", run, tags={WEIGHTS: weights})
        versions.append(Registered(str(made.version), run, weights))
    proxy = make_proxy(url)
    for key, value in {
        "MLFLOW_TRACKING_URI": proxy.url,
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "2",
        "PNEUMOFLOW_PATIENCE": "0.4",
        "PNEUMOFLOW_LEASE_SECONDS": "0",
    }.items():
        monkeypatch.setenv(key, value)
    make_champion(versions[0], "the first model", None)
    yield proxy, client, versions
    proxy.clear()
    client.delete_registered_model(MODEL_NAME)


def state(client):
    model = client.get_registered_model(MODEL_NAME)
    return str(model.aliases["champion"]), [one["version"] for one in json.loads(model.tags["champions"])]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("read", READS)
def test_a_read_that_fails_crowns_nobody(store, kind, read):
    proxy, client, (first, second) = store
    proxy.fail(READS[read], kind)
    with pytest.raises(UserError) as caught:
        registered_champion()
    assert proxy.hits
    assert "\n" not in str(caught.value)
    with pytest.raises((UserError, ChampionChangedError)):
        make_champion(second, "never compared", None)
    with pytest.raises(UserError):
        roll_back()
    assert state(client) == ("1", ["1"])
    proxy.clear()
    assert registered_champion() == first


@pytest.mark.parametrize("kind", MOMENTS)
def test_a_moment_is_survived(store, kind, monkeypatch):
    proxy, client, (first, second) = store
    monkeypatch.setenv("PNEUMOFLOW_PATIENCE", "30")
    proxy.fail("registered-models/get", kind, times=2)
    assert registered_champion() == first
    assert proxy.hits == 2
    proxy.fail("registered-models/alias", kind, times=1)
    make_champion(second, "better", first)
    assert proxy.hits == 1
    assert state(client) == ("2", ["1", "2"])


@pytest.mark.parametrize("kind", REFUSALS)
def test_a_refusal_is_final(store, kind, monkeypatch):
    proxy, _, _ = store
    monkeypatch.setenv("PNEUMOFLOW_PATIENCE", "30")
    proxy.fail("registered-models/get", kind)
    with pytest.raises(UserError, match=f"access is refused: .*{kind}"):
        registered_champion()
    assert proxy.hits == 1


def test_pictures_do_not_wait_for_the_store_of_files(store, caplog, monkeypatch):
    proxy, _, _ = store
    monkeypatch.setattr("pipeline.tracking.run._LAST_WAIT", {"FINISHED": 2.0})
    proxy.fail("PUT .*artifacts", "slow")
    with tracked_run(None, {}) as run:
        began = time.perf_counter()
        for epoch in range(5):
            run.log_pictures({f"val/epoch-{epoch}.jpg": bytes([epoch])})
            run.log_metrics({"val/map": epoch}, epoch)
        assert time.perf_counter() - began < 1
    assert "`pneumoflow sync` delivers them" in caplog.text
    proxy.clear()
    client = mlflow.MlflowClient(proxy.url)
    assert [metric.value for metric in client.get_metric_history(run.run_id, "val/map")] == [0, 1, 2, 3, 4]
    assert sync_left_behind()[1] == 0
    assert [one.path for one in client.list_artifacts(run.run_id, "val")] == [f"val/epoch-{n}.jpg" for n in range(5)]
    assert Path(client.download_artifacts(run.run_id, "val/epoch-3.jpg")).read_bytes() == b"\3"
    assert not (OUTBOX / run.run_id).exists()


@pytest.mark.long
@pytest.mark.parametrize("kind", ["403", "503", "cut off", "empty"])
@pytest.mark.parametrize("write", WRITES)
def test_a_write_that_fails_loses_no_history(store, kind, write):
    """Check that the next promotion or rollback finds the alias's champions, whether or not the write was done."""
    proxy, client, (first, second) = store
    proxy.fail(f"(POST|DELETE) .*{write}", kind)
    with contextlib.suppress(UserError):
        make_champion(second, "better", first)
    assert proxy.hits
    proxy.clear()
    client.delete_registered_model_tag(MODEL_NAME, "pneumoflow.promotion")
    alias, champions = state(client)
    assert champions in (["1"], ["1", "2"])
    if alias == "2":
        assert roll_back() == ("2", "1")
    else:
        make_champion(second, "better", first)
        assert state(client) == ("2", ["1", "2"])


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_that_is_fetched_in_part_is_not_used(store, kind, tmp_path):
    proxy, _, _ = store
    proxy.fail("model-versions|artifacts|registered-models|logged-models", kind)
    with pytest.raises(UserError) as caught:
        download_model(f"models:/{MODEL_NAME}@champion", tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["403", "503", "cut off", "half"])
def test_a_search_that_fails_is_not_none(store, kind):
    proxy, _, (first, _) = store
    assert find_version("a", first.run_id) == first
    proxy.fail("model-versions/search", kind)
    with pytest.raises(UserError):
        find_version("a", first.run_id)


def test_no_access_is_said_at_the_start(store):
    proxy, _, _ = store
    for pattern, call in {
        "experiments/": lambda: tracked_run(None, {}).__enter__(),
        "POST .*runs/create": lambda: tracked_run(None, {}).__enter__(),
        "(POST|PATCH) .*registered-models": require_registry,
    }.items():
        proxy.fail(pattern, "403")
        with pytest.raises(UserError, match="access is refused: .*403"):
            call()
        assert proxy.hits


def test_each_right_is_asked_for_and_nothing_is_written(store):
    proxy, client, _ = store
    before = len(client.search_runs(["1"])), len(client.search_model_versions(f"name = '{MODEL_NAME}'"))
    require_rights()
    assert (len(client.search_runs(["1"])), len(client.search_model_versions(f"name = '{MODEL_NAME}'"))) == before
    aliases = client.get_registered_model(MODEL_NAME).aliases
    for pattern, right in {
        "POST .*runs/create": "logging a run",
        "POST .*model-versions/create": "registering a model",
        "POST .*registered-models/alias": "naming the challenger",
    }.items():
        proxy.fail(pattern, "403")
        with pytest.raises(UserError, match=f"{right}: access is refused: .*403"):
            require_rights()
    assert client.get_registered_model(MODEL_NAME).aliases == aliases


def test_nobody_listens(store, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:GeHeim1@127.0.0.1:{free_port()}")
    with pytest.raises(UserError, match="looking for the model.*Connection refused") as caught:
        registered_champion()
    assert "GeHeim1" not in str(caught.value)


@pytest.mark.parametrize("certificates", [None, ""])  # compose sets variables without a value to nothing
def test_a_certificate_that_nobody_vouches_for_is_named(self_signed_server, monkeypatch, certificates):
    if certificates is not None:
        monkeypatch.setenv("MLFLOW_TRACKING_SERVER_CERT_PATH", certificates)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", self_signed_server)
    monkeypatch.setenv("PNEUMOFLOW_PATIENCE", "0")
    with pytest.raises(UserError, match=f"{self_signed_server}: looking for the model .*self-signed certificate"):
        registered_champion()
