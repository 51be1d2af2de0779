"""The git repository that DVC needs."""

import subprocess
from pathlib import Path

import pytest

from pipeline.dvc.repository import require_repository
from pipeline.errors import UserError


def dvc(*arguments):
    subprocess.run(["dvc", *arguments], check=True, capture_output=True)


def test_a_folder_without_git_is_one_line_with_the_cures():
    dvc("init", "--no-scm", "-q")
    require_repository()
    Path(".dvc/config").write_text("")  # as it is in a zip file of the project
    with pytest.raises(UserError, match="not a git repository.*`git init`") as caught:
        require_repository()
    cure = "config --local core.no_scm true"
    assert f"`dvc {cure}`" in str(caught.value)
    dvc(*cure.split())
    require_repository()
    Path(".dvc/config.local").unlink()
    subprocess.run(["git", "init", "-q"], check=True)
    require_repository()


def test_a_folder_below_that_of_git():
    subprocess.run(["git", "init", "-q", "."], check=True)
    Path("project/.dvc").mkdir(parents=True)
    with pytest.raises(UserError, match="has no folder .dvc"):
        require_repository()


def test_a_project_in_a_larger_repository(monkeypatch):
    subprocess.run(["git", "init", "-q", "."], check=True)
    Path("project/.dvc").mkdir(parents=True)
    monkeypatch.chdir("project")
    require_repository()
