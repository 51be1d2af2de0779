"""The queue in a real Label Studio: its project is loaded, the boxes are corrected, and the export comes back.

`make test-long` installs Label Studio into an environment of its own, because its packages do not fit ours.
"""

import json
import os
import secrets
import subprocess
from pathlib import Path

import pytest
import requests
import torch

from pipeline.assembly.review import Model
from pipeline.data.annotations import read_annotations
from pipeline.data.label_changes import label_changes
from pipeline.delivery.predictor import Predictor
from pipeline.jobs.queue import queue
from pipeline.jobs.update_labels import update_labels
from tests.conftest import REPOSITORY
from tests.flows.conftest import free_port
from tests.waiting import wait_until

PROGRAM = Path(os.environ.get("LABEL_STUDIO", REPOSITORY / ".venv-label-studio/bin/label-studio"))

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(not PROGRAM.exists(), reason="Label Studio is not installed; `make test-long` installs it"),
]


@pytest.fixture
def studio(tmp_path):
    """Start Label Studio on loopback; yield a function that calls its API."""
    port = free_port()
    token, address = secrets.token_hex(20), f"http://127.0.0.1:{port}"
    settings = {
        "LABEL_STUDIO_BASE_DATA_DIR": str(tmp_path / "studio"),
        "LABEL_STUDIO_ENABLE_LEGACY_API_TOKEN": "true",
        "LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED": "true",
        "LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT": str(tmp_path),
        "COLLECT_ANALYTICS": "false",
        "SENTRY_DSN": "",
        "FRONTEND_SENTRY_DSN": "",
    }
    user = ["--username", "a@example.org", "--password", secrets.token_hex(8), "--user-token", token]
    command = [PROGRAM, "start", "--no-browser", "--internal-host", "127.0.0.1", "--port", str(port), *user]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    log = (tmp_path / "studio.log").open("w")
    process = subprocess.Popen(command, cwd=tmp_path, env=environment | settings, stdout=log, stderr=log)

    def call(method, place, **content):
        answer = requests.request(
            method, address + place, headers={"Authorization": f"Token {token}"}, timeout=60, **content
        )
        assert answer.ok, answer.text
        return answer

    def answers():
        assert process.poll() is None, (tmp_path / "studio.log").read_text()[-2000:]
        try:
            return requests.get(f"{address}/health", timeout=5).ok
        except requests.ConnectionError:
            return False

    try:
        wait_until(answers, 240)
        yield call
    finally:
        process.terminate()
        process.wait(30)


def test_a_project_is_loaded_corrected_and_comes_back(rsna, tiny_model, reader, studio, tmp_path):
    predictor = Predictor(tiny_model, torch.device("cpu"))
    queue(rsna, [Model("m", tiny_model, predictor)], tmp_path / "queue", 4, reader)
    before = read_annotations(rsna)
    config = (tmp_path / "queue/label_studio.xml").read_text()
    project = studio("POST", "/api/projects", json={"title": "queue", "label_config": config}).json()["id"]
    place = {"project": project, "path": str(tmp_path / "queue/images"), "use_blob_urls": True}
    studio("POST", "/api/storages/localfiles", json=place)
    tasks = json.loads((tmp_path / "queue/label_studio.json").read_text())
    studio("POST", f"/api/projects/{project}/import", json=tasks)
    loaded = studio("GET", f"/api/tasks?project={project}&fields=all").json()["tasks"]
    assert len(loaded) == 4
    for task in loaded:
        picture = studio("GET", task["data"]["image"])
        assert picture.content == (tmp_path / f"queue/images/{task['data']['study']}.png").read_bytes()
        (prediction,) = studio("GET", f"/api/predictions?task={task['id']}").json()
        # A person keeps the labels, removes what the model suggests, and draws one box.
        kept = [one for one in prediction["result"] if one.get("score") is None]
        value = {"x": 10, "y": 20, "width": 25, "height": 50, "rotation": 0, "rectanglelabels": ["lung opacity"]}
        drawn = {"type": "rectanglelabels", "from_name": "label", "to_name": "image", "original_width": 128,
                 "original_height": 128, "image_rotation": 0, "value": value}  # fmt: skip
        studio("POST", f"/api/tasks/{task['id']}/annotations", json={"result": [*kept, drawn]})
    export = studio("GET", f"/api/projects/{project}/export?exportType=JSON")
    (tmp_path / "export.json").write_bytes(export.content)
    update_labels(tmp_path / "export.json", rsna, "auto")
    changes = label_changes(before, read_annotations(rsna))
    assert {(one.study, one.kind) for one in changes} == {(task["data"]["study"], "added") for task in loaded}
    for one in changes:
        assert one.after.box == pytest.approx((12.8, 25.6, 32, 64))
