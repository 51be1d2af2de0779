"""The command line: help for everything, groups, completion, progress."""

import os
import subprocess
import sys
from importlib import import_module
from importlib.metadata import version

import pytest
import typer
from typer.testing import CliRunner

from pipeline.cli import app
from tests.flows.terminal import Terminal

FLOWS = ("training", "serve", "inference", "monitoring", "receive")


def commands():
    group = typer.main.get_command(app)
    assert isinstance(group, typer.core.TyperGroup)
    return group.commands


def test_each_command_is_in_one_of_the_groups():
    groups = {name: command.rich_help_panel for name, command in commands().items()}
    assert set(groups.values()) == {"Data", "Train", "Use", "Score"}
    assert {groups[name] for name in ("check", "import")} == {"Data"}
    assert {groups[name] for name in ("predict", "serve")} == {"Use"}


@pytest.mark.parametrize("name", sorted(commands()))
def test_each_argument_has_help(name):
    command = commands()[name]
    assert command.help
    assert [one.name for one in command.params if not getattr(one, "help", None)] == []


@pytest.mark.parametrize("name", FLOWS)
def test_a_flow_shows_help_and_refuses_what_it_does_not_know(name):
    module = import_module(f"flows.{name}")
    shown = CliRunner().invoke(module.app, ["--help"])
    assert shown.exit_code == 0
    assert "Usage:" in shown.output
    assert CliRunner().invoke(module.app, ["--no-such-option"]).exit_code == 2
    assert CliRunner().invoke(module.app, ["a", "b", "c"]).exit_code == 2
    assert [one.name for one in typer.main.get_command(module.app).params if not getattr(one, "help", None)] == []


def test_the_module_of_a_flow_reads_its_arguments(run, tmp_path):
    """In a folder without params.yaml, a run would end with an error about it."""
    done = run("flows.training", "--help", cwd=tmp_path)
    assert (done.returncode, "Usage:" in done.stdout) == (0, True)
    assert run("flows.training", "now", cwd=tmp_path).returncode == 2


@pytest.mark.parametrize("name", ["preprocess", "split", "train", "evaluate"])
def test_a_stage_shows_help_and_refuses_what_it_does_not_know(run, tmp_path, name):
    done = run(f"pipeline.stages.{name}", "--help", cwd=tmp_path)
    assert (done.returncode, f"usage: python -m pipeline.stages.{name}" in done.stdout) == (0, True)
    assert run(f"pipeline.stages.{name}", "--no-such-option", cwd=tmp_path).returncode == 2


def test_version(run):
    done = run("pipeline.cli", "--version")
    assert done.stdout == f"pneumoflow {version('pneumoflow')}\n"


def test_completion():
    words = {"_PNEUMOFLOW_COMPLETE": "complete_bash", "COMP_WORDS": "pneumoflow ex", "COMP_CWORD": "1"}
    done = subprocess.run(["pneumoflow"], env=os.environ | words, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["export-labels", "export"]


def test_progress_is_shown_on_a_terminal_only(tmp_path):
    command = [sys.executable, "-m", "pipeline.cli", "sample", "out", "--studies", "4", "--size", "128"]
    terminal = Terminal(command, tmp_path, dict(os.environ))
    status, _ = terminal.wait(60)
    terminal.end()
    assert status == 0
    assert "100%" in terminal.text
    assert "4 studies in out" in terminal.text
    command[command.index("out")] = "again"
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == "4 studies in again\n"
    assert done.stderr == ""


@pytest.mark.parametrize("module", ["pipeline.cli", "pipeline.jobs.keep", "pipeline.jobs.promote", "flows.training"])
def test_starts_without_pytorch(module, repository):
    """It takes seconds to import, and what only compares or passes on files has no use for it."""
    command = [sys.executable, "-c", f"import sys, {module}; print('torch' in sys.modules)"]
    done = subprocess.run(command, cwd=repository, check=True, stdout=subprocess.PIPE, text=True)
    assert done.stdout.split() == ["False"]
