"""The wheel: installed without the source tree, it has all that the commands need."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """Install the wheel without its dependencies into an empty folder; return the folder."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"  # the build leaves files beside what it packs
    for name in ("pipeline", "flows"):
        shutil.copytree(REPOSITORY / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, source)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    subprocess.run([*pip, "wheel", str(source), "--no-deps", "--wheel-dir", str(folder)], check=True)
    (wheel,) = folder.glob("*.whl")
    subprocess.run([*pip, "install", str(wheel), "--no-deps", "--target", str(folder / "site")], check=True)
    return folder / "site"


def run(site, folder, *arguments):
    env = os.environ | {"PYTHONPATH": str(site)}
    return subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=env, capture_output=True, text=True, check=False
    )


def test_every_module_and_template_is_in_it(installed):
    own = {path.relative_to(REPOSITORY) for room in ("pipeline", "flows") for path in (REPOSITORY / room).rglob("*")}
    wanted = {path for path in own if path.suffix in (".py", ".jinja")}
    there = {path.relative_to(installed) for path in installed.rglob("*")}
    assert wanted <= there
    assert not [path for path in there if path.parts[0] in ("tests", "benchmarks", "docs")]


def test_commands_work_without_the_source_tree(installed, tmp_path):
    where = run(installed, tmp_path, "-c", "import pipeline; print(pipeline.__file__)")
    assert Path(where.stdout.strip()).is_relative_to(installed), where.stderr
    done = run(installed, tmp_path, "-m", "pipeline.cli", "sample", "out", "--studies", "12", "--size", "128")
    assert done.stdout == "12 studies in out\n", done.stderr
    done = run(installed, tmp_path, "-m", "pipeline.cli", "check", "out")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "reports/data.html").exists()
    labels = "out/stage_2_train_labels.csv"
    first = (tmp_path / labels).read_text().splitlines()[1].partition(",")[0]
    (tmp_path / "mine.csv").write_text(f"patientId,PredictionString\n{first},\n")
    done = run(installed, tmp_path, "-m", "pipeline.cli", "score", "mine.csv", labels, "--draws", "100")
    assert '"rsna_score"' in done.stdout, done.stderr


def test_the_script_is_in_it(installed):
    (wheel,) = installed.parent.glob("*.whl")
    with zipfile.ZipFile(wheel) as content:
        (name,) = [one for one in content.namelist() if one.endswith("entry_points.txt")]
        assert "pneumoflow = pipeline.cli:main" in content.read(name).decode()
