import base64
import json
import os
import pickle
import shutil
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
from pipeline.delivery.predictor import Predictor
from pipeline.delivery.serving_limits import ServingLimits
from pipeline.dicom.radiograph import read_radiograph
from pipeline.errors import UserError
from pipeline.submission import prediction_string
from pipeline.tracking import serving_config
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
    """Load it in a process of its own, in another folder: the artifacts hold all that the model needs."""
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
    assert [column.name for column in info.signature.inputs] == ["dicom", "image"]
    outputs = ["PredictionString", "image_score", "boxes", "scores"]
    assert [column.name for column in info.signature.outputs] == outputs
    assert serving_config("models:/rsna-retinanet@challenger") == ServingLimits().model_dump()
    with pytest.raises(UserError, match="no such model"):
        serving_config("models:/rsna-retinanet@nobody")
    model = mlflow.get_logged_model(info.model_id)
    metrics = {metric.key: metric for metric in model.metrics}
    assert metrics["test/rsna_score"].dataset_name == "rsna test"
    assert metrics["test/rsna_score"].dataset_digest
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
        pixels = read_radiograph(studies[0]).pixels.tolist()
        status, answer = _post(url, {"dataframe_split": {"columns": ["image"], "data": [[pixels]]}})
        assert (status, answer["predictions"][0]["PredictionString"]) == (200, strings[0])
        first = answer["predictions"][0]
        assert len(first["boxes"]) == len(first["scores"]) == len(strings[0].split()) // 5
        for column, rows in hostile():
            status, answer = _post(url, {"dataframe_split": {"columns": [column], "data": rows}})
            assert 400 <= status < 500, (column, str(rows)[:80], answer)
            if column == "dicom" and isinstance(rows[0][0], str):  # a request that MLflow hands to the model
                assert "Traceback" not in answer
                assert rows[0][0][:4] not in answer
        assert _post(url, b"{")[0] == _post(url, b"\xff" * 1000)[0] == _post(url, [])[0] == 400
        assert _post(url, {"dataframe_split": {"columns": ["dicom"], "data": [[encode(studies[0])]]}})[0] == 200
    finally:
        os.killpg(process.pid, 15)
        process.wait(30)


def hostile():
    """Yield useless requests, column and rows: malformed, huge, of the wrong kind."""
    text = lambda content: base64.b64encode(content).decode()  # noqa: E731
    yield "dicom", [["?!QUJD-no-base-64"]]
    yield "dicom", [[text(b"no dicom")]]
    yield "dicom", [["AAAA"]] * 65
    yield "dicom", [[text(b"\0" * 128 + b"DICM" + b"\xff" * 30_000_000)]]
    yield "dicom", [[None]]
    yield "dicom", [[["a", "b"]]]
    yield "other", [["AAAA"]]
    yield "image", [[[[1, 2], [3]]]]
    yield "image", [[[]]]
    yield "image", [[[[0, 256]]]]
    yield "image", [[[["a"]]]]
    yield "image", [[[[[1]]]]]
    yield "image", [["../../etc/passwd"]]


class Evil:
    def __reduce__(self):
        return os.system, ("touch pwned",)


@pytest.mark.filterwarnings("ignore")
def test_a_planted_pickle_is_not_loaded(trained, studies, tmp_path):
    """Check that neither MLflow, told to load a pickle, nor our code, with one beside the weights, loads it."""
    local = shutil.copytree(next((trained[0] / "mlruns").rglob("MLmodel")).parent, tmp_path / "model")
    (local / "artifacts/models/model.pkl").write_bytes(pickle.dumps(Evil()))
    (local / "artifacts/models/model.pt").write_bytes(pickle.dumps(Evil()))
    code = (
        "import sys, mlflow\n"
        "from pathlib import Path\n"
        "from pipeline.delivery.predictor import Predictor\n"
        "from pipeline.tracking import download_model\n"
        "assert Predictor(download_model('model')).config\n"
        "import yaml\n"
        "flavor = yaml.safe_load(Path('model/MLmodel').read_text())\n"
        "flavor['flavors']['python_function'].pop('model_code_path', None)\n"
        "flavor['flavors']['python_function']['python_model'] = 'python_model.pkl'\n"
        "Path('model/MLmodel').write_text(yaml.safe_dump(flavor))\n"
        "try:\n"
        "    mlflow.pyfunc.load_model('model')\n"
        "except Exception as error:\n"
        "    print('refused:', error)\n"
    )
    (local / "python_model.pkl").write_bytes(pickle.dumps(Evil()))
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=project_environment(trained[0]) | {"MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"},
    )
    assert done.returncode == 0, done.stderr
    assert "pickle is disallowed" in done.stdout
    assert not (tmp_path / "pwned").exists()


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
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(url + "/invocations", content, headers, method="POST")
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()
