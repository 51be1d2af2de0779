"""The notebook opens a finished run: all its cells run in a project, and show numbers and pictures."""

import shutil

import nbformat
import pytest
from nbclient import NotebookClient

from tests.conftest import REPOSITORY

pytestmark = pytest.mark.slow


def test_the_notebook_opens_a_finished_run(trained, tmp_path, monkeypatch):
    folder = trained[0]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
    monkeypatch.setenv("JUPYTER_PLATFORM_DIRS", "1")
    place = folder / "notebooks"
    shutil.copytree(REPOSITORY / "notebooks", place, dirs_exist_ok=True)
    notebook = nbformat.read(place / "finished_run.ipynb", as_version=4)
    nbformat.validate(notebook)
    assert not [cell for cell in notebook.cells if cell.get("outputs")]  # nothing of anybody's data is in git
    NotebookClient(notebook, timeout=200, resources={"metadata": {"path": str(place)}}).execute()
    shown = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert sum("image/png" in output.get("data", {}) for output in shown) == 2
    assert any("rsna_score" in output.get("data", {}).get("text/html", "") for output in shown)
    assert any("image score" in output.get("text", "") for output in shown)
