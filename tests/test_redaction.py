import logging
import subprocess
import sys

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pipeline.errors import UserError
from pipeline.redaction import redact
from pipeline.tracking import run_place, shown_uri, tracked_run, tracking_uri
from tests.conftest import REPOSITORY

WORD = "S3cretWord"


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        (f"http://alice:{WORD}@host:5000/a failed", "http://***@host:5000/a failed"),
        (f"'postgresql+psycopg2://u:{WORD}@db/x'", "'postgresql+psycopg2://***@db/x'"),
        (f"https://{WORD}@host", "https://***@host"),
        (f"https://a:{WORD}@x@host/p", "https://***@host/p"),
        (f"GET http://host/x?token={WORD}&y=1", "GET http://host/x?token=***&y=1"),
        ("mail a@b and http://host/x@y", "mail a@b and http://host/x@y"),
        ("nothing to hide: 3 : 4 @ 5", "nothing to hide: 3 : 4 @ 5"),
    ],
)
def test_credentials_go_and_the_rest_stays(text, clean):
    assert redact(text) == clean
    assert redact(clean) == clean


@example("://a", "")
@given(st.text("abc/:@?#%&= '\"", max_size=8), st.text("xyz:@ /", max_size=20))
def test_no_password_of_an_address_is_left(odd, around):
    password = f"{WORD}{odd}".replace(" ", "").replace("'", "").replace('"', "").replace("<", "")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"http://alice:{password}@host:5000")
        assert WORD not in redact(f"{around} http://alice:{password}@host:5000 {around}")


def test_what_the_environment_holds_is_hidden_wherever_it_stands(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", WORD)
    assert redact(f"wrong: {WORD}!") == "wrong: ***!"
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "a")
    assert redact("a cat") == "a cat"


def test_libraries_get_an_address_without_a_password(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://al%40ice:{WORD}%21@127.0.0.1:1/x")
    import os

    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "")
    assert tracking_uri() == shown_uri() == os.environ["MLFLOW_TRACKING_URI"] == "http://127.0.0.1:1/x"
    assert (os.environ["MLFLOW_TRACKING_USERNAME"], os.environ["MLFLOW_TRACKING_PASSWORD"]) == ("al@ice", f"{WORD}!")
    monkeypatch.setenv("PNEUMOFLOW_PATIENCE", "0")
    assert WORD not in run_place("0" * 32)


@pytest.mark.parametrize("uri", [f"http://a:{WORD}@[half", f"http://a:{WORD}@h:port", f"http://a:{WORD}@"])
def test_what_is_no_address_is_one_line(monkeypatch, uri):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(UserError, match="not an address") as caught:
        tracking_uri()
    assert WORD not in str(caught.value)


def test_a_run_keeps_no_password():
    import mlflow

    secret = f"tcp://u:{WORD}@host"
    with tracked_run(None, {"source": secret}) as run:
        run.log_params({"preprocess": {"scheduler": secret}})
        run.log_text(secret, "params.yaml")
    client = mlflow.MlflowClient(tracking_uri())
    stored = client.get_run(run.run_id)
    assert stored.data.params == {"preprocess.scheduler": "tcp://***@host"}
    assert stored.data.tags["source"] == "tcp://***@host"
    assert mlflow.artifacts.load_text(f"{stored.info.artifact_uri}/params.yaml") == "tcp://***@host"


SCRIPT = """
import logging, sys, warnings
from pipeline.errors import UserError, run_main
def main():
    logging.getLogger("some.library").warning("connecting to %s", "http://alice:S3cretWord@host")
    raise {error}("no way to http://alice:S3cretWord@host")
run_main(main)
"""


@pytest.mark.parametrize("error", ["UserError", "RuntimeError"])
def test_no_process_of_ours_prints_one(error):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(error=error)],
        cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 1
    assert "connecting to http://***@host" in done.stderr
    assert "no way to http://***@host" in done.stderr
    assert WORD not in done.stdout + done.stderr
    assert logging.getLogRecordFactory() is logging.LogRecord
