"""DVC's default remote, and whether it lies outside the project."""

import subprocess
import sys

import pytest

from pipeline.dvc.remote import remote_elsewhere


@pytest.mark.parametrize(
    ("url", "found"),
    [
        (None, None),
        ("remote", None),
        ("../remote", "{parent}/remote"),
        ("s3://bucket/cache", "s3://bucket/cache"),
        ("https://me:GeHeim1@host/cache", "https://***@host/cache"),
    ],
)
def test_a_remote_inside_the_project_is_not_elsewhere(tmp_path, monkeypatch, url, found):
    project = tmp_path / "project"
    project.mkdir()
    monkeypatch.chdir(project)
    commands = [["init", "-q", "--no-scm"], *([["remote", "add", "-q", "-d", "team", url]] if url else [])]
    for command in commands:
        subprocess.run([sys.executable, "-m", "dvc", *command], check=True)
    assert remote_elsewhere() == (f"team ({found.format(parent=tmp_path)})" if found else None)
