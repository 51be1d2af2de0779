"""``pneumoflow doctor``: a line for each check, and what fails is named."""

import shutil
import subprocess
import sys

import pytest
import yaml

from pipeline.errors import UserError
from pipeline.jobs import doctor as module
from pipeline.jobs.doctor import Check, doctor
from tests.conftest import project_environment
from tests.flows.conftest import free_port, prefect_server  # noqa: F401

pytestmark = pytest.mark.slow
NAMES = ["versions", "disk", "MLflow", "DVC remote", "Prefect", "GPU", "Kaggle"]


def ask_doctor(project, **environment):
    """Return the finished command, and name of check -> its mark and its finding."""
    done = subprocess.run(
        [sys.executable, "-m", "pipeline.cli", "doctor"],
        cwd=project,
        env=project_environment(project, **environment),
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert "Traceback" not in done.stderr
    lines = [line.partition(": ") for line in done.stdout.splitlines()]
    return done, {head.split(maxsplit=1)[1]: (head.split()[0], finding) for head, _, finding in lines}


def test_a_project_that_can_train(project, prefect_server):  # noqa: F811
    done, found = ask_doctor(project, PREFECT_API_URL=prefect_server)
    assert done.returncode == 0, done.stdout + done.stderr
    assert list(found) == NAMES
    assert {name: mark for name, (mark, _) in found.items() if mark != "ok"} == {"Kaggle": "-"}
    assert "can be used; champion: none yet" in found["MLflow"][1]
    assert found["DVC remote"][1].startswith("local (")
    assert found["Prefect"][1] == f"{prefect_server} answers; no worker waits in a work pool"
    assert list((project.parent / "remote").glob("pneumoflow-doctor*")) == []


def test_what_is_wrong_is_named_and_the_rest_is_checked(project):
    shutil.rmtree(project.parent / "remote")
    (project.parent / "remote").write_text("a file")
    params = yaml.safe_load((project / "params.yaml").read_text())
    params["train"]["accelerator"] = "cuda"
    (project / "params.yaml").write_text(yaml.safe_dump(params))
    mlflow, prefect = (f"http://127.0.0.1:{free_port()}" for _ in range(2))
    done, found = ask_doctor(
        project, MLFLOW_TRACKING_URI=mlflow, PNEUMOFLOW_PATIENCE="0", PREFECT_API_URL=f"{prefect}/api",
        CUDA_VISIBLE_DEVICES="", KAGGLE_USERNAME="me", KAGGLE_KEY="GeHeim1",
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr == "error: 4 of 7 checks failed: MLflow, DVC remote, Prefect, GPU\n"
    assert list(found) == NAMES
    assert found["MLflow"][1].startswith(f"MLFLOW_TRACKING_URI = {mlflow}: looking for the experiment: ")
    assert "remote" in found["DVC remote"][1]
    assert found["Prefect"][1].startswith(f"PREFECT_API_URL = {prefect}/api: no Prefect server answers")
    assert found["GPU"] == ("failed", "train.accelerator = 'cuda': no GPU is visible to PyTorch; set auto or cpu")
    assert found["Kaggle"] == ("ok", "there is a token")


def test_a_remote_that_is_not_set(project):
    subprocess.run([sys.executable, "-m", "dvc", "remote", "remove", "local"], cwd=project, check=True)
    done, found = ask_doctor(project)
    assert done.returncode == 1
    assert found["DVC remote"] == ("failed", "no default remote; `dvc remote add --default NAME URL` sets one")


def test_versions_that_do_not_fit(monkeypatch):
    monkeypatch.setattr(module, "requires", lambda _: ["torch>=99", "no-such-package>=1", "dask>=99; extra == 'dask'"])
    with pytest.raises(UserError, match=r"torch is .*, must be >=99; no-such-package is missing, must be >=1; `pip"):
        module._versions()


def test_a_full_disk(small_disk, monkeypatch):
    monkeypatch.chdir(small_disk)
    lines = []
    with pytest.raises(UserError, match="1 of 2 checks failed: disk"):
        doctor([Check("disk", module._disk), Check("more", lambda: "fine")], lines.append)
    assert lines == ["failed  disk: 0.0 GiB are free here; a run needs 2", "ok      more: fine"]
