"""Each stage's `deps` in dvc.yaml are the code that decides its outputs: all of it, and no more.

A missing module leaves stale results; a needless module costs hours.
"""

import ast
from functools import cache
from pathlib import Path

import pytest
import yaml

from pipeline.assembly.training import TRAINING_CODE
from tests.conftest import REPOSITORY

TEMPLATES = Path("pipeline/reports/templates")
STAGES = ("preprocess", "split", "train", "evaluate")

# Modules and packages that decide no byte of an output, and their jobs. Modules that only they import decide none.
DECIDE_NOTHING = {
    "pipeline/__init__.py": "variables of the environment",
    "pipeline/account.py": "a home folder for processes that have none",
    "pipeline/bounds.py": "accepts or refuses a value, and changes none",
    "pipeline/documents.py": "accepts or refuses a file, and changes nothing in it",
    "pipeline/errors.py": "messages",
    "pipeline/files.py": "writes what it is given, whole or not at all",
    "pipeline/folder_lock.py": "who may run",
    "pipeline/params.py": "checks values; dvc.yaml names them under `params`",
    "pipeline/paths.py": "names of outputs, which dvc.yaml names too",
    "pipeline/provenance.py": "tags of a run, and the names of checkpoints",
    "pipeline/lifetime.py": "how a process starts and ends",
    "pipeline/progress.py": "shows",
    "pipeline/ranks.py": "which process speaks",
    "pipeline/redaction.py": "messages",
    "pipeline/stopping.py": "signals",
    "pipeline/assembly/run_identity.py": "what MLflow is told of a run",
    "pipeline/assembly/run_log.py": "what MLflow is told of a run",
    "pipeline/data/parallel.py": "which process does the work",
    "pipeline/sources": "the example of a request, in the registry",
    "pipeline/tracking": "MLflow",
    "pipeline/training/ended.py": "removes the checkpoints of trainings that have ended",
    "pipeline/training/launch.py": "starts processes; `train.devices` says how many",
    "pipeline/training/profiling.py": "measures",
    "pipeline/training/progress.py": "shows",
    "pipeline/training/sharing.py": "says",
}
# Pictures and pages do not change the data of these stages; `reports/data.html` is drawn anew with the next data.
ONLY_SHOWS = {"preprocess": ["pipeline/reports"], "train": ["pipeline/reports"]}
# Params of training that change no byte of the model, and their effects.
SHOWS_OR_SHARES_WORK = {
    "checkpoint_steps": "how much work a kill costs",
    "checkpoint_store": "where checkpoints are copied to",
    "log_every_steps": "logs",
    "picture_epochs": "pictures in MLflow",
    "profile_steps": "measures",
    "restarts": "what happens when a process dies",
    "workers": "which process loads images",
}
OF_STAGE_EVALUATE = ["bootstrap_draws"]


def module_files(name):
    """Return the files of a module's dotted name: its own, and those of the packages that contain it."""
    parts = name.split(".")
    packages = [Path(*parts[:count], "__init__.py") for count in range(1, len(parts) + 1)]
    return [path for path in (*packages, Path(*parts).with_suffix(".py")) if (REPOSITORY / path).exists()]


@cache
def imported_files(file):
    """Return the project's files that a file imports, anywhere in it, except imports that only a type checker sees."""
    tree = ast.parse((REPOSITORY / file).read_text())
    typing = [node for node in ast.walk(tree) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)]
    skipped = {id(child) for node in typing for part in node.body for child in ast.walk(part)}
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import) and id(node) not in skipped:
            names |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom) and id(node) not in skipped:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    modules = {path for name in names if name.startswith("pipeline") for path in module_files(name)}
    return modules | {TEMPLATES / text for text in _texts(tree) if (REPOSITORY / TEMPLATES / text).suffix == ".jinja"}


def _texts(tree):
    return {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}


def within(file, places):
    return any(file == Path(place) or Path(place) in file.parents for place in places)


def deciding_files(stage):
    """Return the code that decides the stage's outputs: all modules that it imports, directly or not."""
    ignored = [*DECIDE_NOTHING, *ONLY_SHOWS.get(stage, [])]
    found, waiting = set(), [Path(f"pipeline/stages/{stage}.py")]
    while waiting:
        file = waiting.pop()
        if file not in found and not within(file, ignored):
            found.add(file)
            waiting += imported_files(file) if file.suffix == ".py" else []
    return {file for file in found if not _only_says_what_it_is(file)}


def _only_says_what_it_is(file):
    """Tell whether the file is the `__init__.py` of a package, without code."""
    return file.name == "__init__.py" and len(ast.parse((REPOSITORY / file).read_text()).body) <= 1


def code_dependencies(stage):
    listed = yaml.safe_load((REPOSITORY / "dvc.yaml").read_text())["stages"][stage]["deps"]
    return [place for place in listed if place.startswith("pipeline/")]


def files_of(places):
    for place in places:
        path = REPOSITORY / place
        yield from (file.relative_to(REPOSITORY) for file in ([path] if path.is_file() else path.rglob("*.py")))


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_depends_on_the_code_that_decides_its_outputs(stage):
    listed = code_dependencies(stage)
    missing = sorted(str(file) for file in deciding_files(stage) if not within(file, listed))
    needless = {file for file in files_of(listed) if not _only_says_what_it_is(file)} - deciding_files(stage)
    assert (missing, sorted(map(str, needless))) == ([], [])


def test_a_training_goes_on_only_with_the_code_that_it_began_with():
    assert list(TRAINING_CODE) == code_dependencies("train")


def test_each_param_that_decides_what_is_trained_is_named():
    stage = yaml.safe_load((REPOSITORY / "dvc.yaml").read_text())["stages"]["train"]
    values = yaml.safe_load((REPOSITORY / "params.yaml").read_text())
    read = [
        "seed",
        "classes",
        "data.lateral",
        "preprocess.image_size",
        "preprocess.clahe",
        "preprocess.channels",
        "model",
        "loss",
        "augment",
    ]
    read += [f"train.{key}" for key in values["train"] if key not in SHOWS_OR_SHARES_WORK]
    read += [f"evaluate.{key}" for key in values["evaluate"] if key not in OF_STAGE_EVALUATE]
    assert sorted(stage["params"]) == sorted(read)
    assert set(values["train"]) > set(SHOWS_OR_SHARES_WORK)


def test_what_decides_nothing_exists_and_is_imported():
    every = {file for stage in STAGES for file in _all_imports(Path(f"pipeline/stages/{stage}.py"))}
    assert [place for place in DECIDE_NOTHING if not any(within(file, [place]) for file in every)] == []


def _all_imports(file):
    found, waiting = set(), [file]
    while waiting:
        file = waiting.pop()
        if file not in found:
            found.add(file)
            waiting += imported_files(file) if file.suffix == ".py" else []
    return found
