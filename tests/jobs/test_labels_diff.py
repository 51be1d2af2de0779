"""`pneumoflow labels-diff`, between folders, tables and versions of a real DVC project."""

import subprocess
import sys

import pandas as pd
import pytest

from pipeline.data.annotations import IMAGES, LABELS
from tests.conftest import project_environment


@pytest.fixture
def edited(project):
    """Edit the labels of a project and keep them as a new version; return the project and the studies that changed."""
    path = project / "data/rsna" / LABELS
    table = pd.read_csv(path)
    positive = table[table["Target"] == 1].drop_duplicates("patientId").index[:2]
    table["x"] = table["x"].where(table.index != positive[0], table["x"] + 3)
    again = table.loc[[positive[1]]].assign(x=1, y=1, width=20, height=20)
    pd.concat([table, again]).to_csv(path, index=False)
    git = ["git", "-c", "user.name=test", "-c", "user.email=test@localhost", "commit", "-qam", "corrected"]
    for command in ([sys.executable, "-m", "dvc", "add", "-q", "data/rsna"], git):
        subprocess.run(command, cwd=project, check=True, env=project_environment(project), capture_output=True)
    return project, table.loc[positive, "patientId"].to_list()


def test_versions_of_a_project_are_compared(edited, run):
    project, (moved, added) = edited
    done = run("pipeline.cli", "labels-diff", "HEAD~1", "HEAD", cwd=project)
    assert done.returncode == 0, done.stderr
    assert "2 studies changed; 0 new, 0 gone\n  boxes: 1 added, 0 removed, 1 moved, 0 other class\n" in done.stdout
    page = (project / "reports/labels_diff.html").read_text()
    assert page.count("data:image/jpeg;base64,") == 2
    assert moved in page
    assert added in page
    assert "1 1 20 20" in page
    with_folder = run("pipeline.cli", "labels-diff", "HEAD~1", "data/rsna", cwd=project)
    assert with_folder.stdout == done.stdout
    assert not subprocess.run(["git", "status", "--short"], cwd=project, capture_output=True, check=True).stdout


def test_a_table_without_images_is_compared_too(rsna, run, tmp_path):
    table = pd.read_csv(rsna / LABELS)
    table[table["patientId"] != table["patientId"][0]].to_csv(tmp_path / "before.csv", index=False)
    for path in (rsna / IMAGES).iterdir():
        path.unlink()
    done = run("pipeline.cli", "labels-diff", "before.csv", rsna, "--report", "page.html", cwd=tmp_path)
    assert "1 studies changed; 1 new, 0 gone" in done.stdout
    assert "study added" in (tmp_path / "page.html").read_text()


@pytest.mark.parametrize(
    ("version", "words"),
    [("no-such-tag", "no such file or folder, and no version"), ("--rev", "No such option"), ("broken.csv", "line 2")],
)
def test_a_version_that_is_not_there(project, run, version, words):
    (project / "broken.csv").write_text("patientId,x,y,width,height,Target\na,1,2,3,4,0\n")
    done = run("pipeline.cli", "labels-diff", version, "data/rsna", cwd=project)
    assert done.returncode in (1, 2)
    assert "Traceback" not in done.stderr
    assert words in done.stderr
