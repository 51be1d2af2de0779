import base64
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import mlflow
import numpy as np
import pandas as pd
import pytest

from pipeline.data.annotations import IMAGES
from pipeline.data.dicom import read_radiograph
from pipeline.delivery.predictor import Predictor
from pipeline.submission import prediction_string
from tests.conftest import project_environment

pytestmark = pytest.mark.slow


@pytest.fixture
def studies(sample):
    return sorted((sample / IMAGES).glob("*.dcm"))[:2]


def wanted(trained, studies):
    predictor = Predictor(trained[0] / "models")
    found = [predictor.predict([read_radiograph(path).pixels])[0] for path in studies]
    return [prediction_string(one.boxes, one.scores) for one in found], [one.image_score for one in found]


def encode(path):
    return base64.b64encode(path.read_bytes()).decode()


@pytest.mark.filterwarnings("ignore")
def test_loads_and_predicts_without_this_repository(trained, studies, tmp_path):
    """In a process of its own, in another folder: what the model needs is in its artifacts."""
    code = (
        "import json, sys, mlflow, pandas as pd\n"
        "model = mlflow.pyfunc.load_model('models:/rsna-retinanet@challenger')\n"
        "rows = json.load(open('rows.json'))\n"
        "found = model.predict(pd.DataFrame({'dicom': rows}))\n"
        "import pipeline\n"
        "print(json.dumps([found['PredictionString'].tolist(), found['image_score'].tolist(), pipeline.__file__]))\n"
    )
    (tmp_path / "rows.json").write_text(json.dumps([encode(path) for path in studies]))
    (tmp_path / "load.py").write_text(code)
    uri = f"sqlite:///{trained[0]}/mlflow.db"
    done = subprocess.run(
        [sys.executable, "load.py"],
        capture_output=True,
        text=True,
        env={**os.environ, "MLFLOW_TRACKING_URI": uri, "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"},
    )
    assert done.returncode == 0, done.stderr
    strings, scores, place = json.loads(done.stdout.splitlines()[-1])
    expected = wanted(trained, studies)
    assert strings == expected[0]
    np.testing.assert_allclose(scores, expected[1], atol=1e-5)
    assert str(trained[0] / "mlruns") in place


def test_what_is_stored(trained):
    mlflow.set_tracking_uri(f"sqlite:///{trained[0]}/mlflow.db")
    info = mlflow.models.get_model_info("models:/rsna-retinanet@challenger")
    assert [column.name for column in info.signature.inputs] == ["dicom"]
    assert [column.name for column in info.signature.outputs] == ["PredictionString", "image_score"]
    files = [path for path in (trained[0] / "mlruns").rglob("*") if path.is_file()]
    assert not [path for path in files if path.suffix in (".pkl", ".pickle", ".pt", ".pth")]
    assert any(path.name == "model.safetensors" for path in files)
    requirements = next(path for path in files if path.name == "requirements.txt").read_text().split()
    assert all("==" in line and "+" not in line for line in requirements)
    assert any(line.startswith("torch==") for line in requirements)
    assert not pd.Series(requirements).str.startswith("prefect").any()


def test_serves_dicom_over_http(trained, studies):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = ["mlflow", "models", "serve", "-m", "models:/rsna-retinanet@challenger", "--env-manager", "local"]
    process = subprocess.Popen(
        [sys.executable, "-m", *command, "-h", "127.0.0.1", "-p", str(port)],
        env=project_environment(trained[0], MLFLOW_TRACKING_URI=f"sqlite:///{trained[0]}/mlflow.db"),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    url = f"http://127.0.0.1:{port}"
    try:
        _wait(url + "/ping", process)
        status, answer = _post(url, {"dataframe_split": {"columns": ["dicom"], "data": [[encode(p)] for p in studies]}})
        assert status == 200
        strings, scores = wanted(trained, studies)
        assert [row["PredictionString"] for row in answer["predictions"]] == strings
        np.testing.assert_allclose([row["image_score"] for row in answer["predictions"]], scores, atol=1e-5)
        for rows in ([["not base64!"]], [[base64.b64encode(b"no dicom").decode()]], [["AAAA"]] * 65):
            status, answer = _post(url, {"dataframe_split": {"columns": ["dicom"], "data": rows}})
            assert status == 400, answer
        assert _post(url, {"dataframe_split": {"columns": ["dicom"], "data": [[encode(studies[0])]]}})[0] == 200
    finally:
        os.killpg(process.pid, 15)
        process.wait(30)


def _wait(url, process):
    for _ in range(240):
        assert process.poll() is None
        try:
            urllib.request.urlopen(url, timeout=2).close()
        except OSError:
            time.sleep(0.5)
        else:
            return
    pytest.fail("the server does not answer")


def _post(url, body):
    request = urllib.request.Request(
        url + "/invocations", json.dumps(body).encode(), {"Content-Type": "application/json"}, method="POST"
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()
