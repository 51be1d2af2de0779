"""The documents: their links lead somewhere, and they name the commands and params that exist."""

import re
import shlex
from importlib import import_module

import pytest
import typer
import yaml

from pipeline.cli import app
from tests.conftest import REPOSITORY
from tests.documents import DOCUMENTS, commands

LINK = re.compile(r"\]\((?!https?://)([^)#]*)(#[^)]*)?\)")


def anchors(document):
    headings = re.findall(r"^#+ (.*)$", document.read_text(), re.MULTILINE)
    return {"#" + re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document):
    for place, anchor in LINK.findall(document.read_text()):
        if place.startswith("reference/"):
            continue  # made by docs/hooks.py when the site is built, which checks links too
        target = document.parent / place if place else document
        assert target.exists(), place
        assert not anchor or anchor in anchors(target), anchor


def test_readme_names_each_document():
    named = {place for place, _ in LINK.findall((REPOSITORY / "README.md").read_text())}
    assert {str(path.relative_to(REPOSITORY)) for path in DOCUMENTS[1:]} <= named


def test_commands_are_those_that_there_are():
    text = (REPOSITORY / "docs/commands.md").read_text()
    every = "\n".join(document.read_text() for document in DOCUMENTS)
    known = set(typer.main.get_group(app).commands)
    assert set(re.findall(r"`pneumoflow ([a-z][a-z-]*)", text)) == known
    assert (
        set(re.findall(r"pneumoflow ([a-z][a-z-]*)\b(?!:)", re.sub(r"pneumoflow &&|pneumoflow\n", "", every))) <= known
    )


# Variables, the program, its arguments, and perhaps a comment.
OURS = re.compile(r"(?:[A-Z_]+=\S+ )*(pneumoflow|python -m flows\.\w+)(?: +(.*))?$")


def documented_commands():
    shown = [command for document in DOCUMENTS for command in commands(document.read_text())]
    found = [match.groups(default="") for command in shown if (match := OURS.match(command))]
    return [(program, shlex.split(arguments, comments=True)) for program, arguments in found]


def test_commands_of_the_documents_are_found():
    commands = documented_commands()
    assert ("pneumoflow", ["queue", "data/rsna", "--count", "10"]) in commands
    assert ("python -m flows.training", []) in commands
    assert len(commands) > 15


@pytest.mark.parametrize(("program", "arguments"), documented_commands(), ids=str)
def test_commands_of_the_documents_are_understood(program, arguments):
    """Each option exists and takes such a value; tests/flows/test_commands_of_documents.py runs the commands."""
    if program == "pneumoflow":
        name, *arguments = arguments
        command = typer.main.get_group(app).commands[name]
    else:
        command = typer.main.get_command(import_module(program.split()[-1]).app)
    command.make_context(program, list(arguments))
    with pytest.raises(Exception, match="[Nn]o such option"):
        command.make_context(program, [*arguments, "--no-such-option"])


def test_params_are_those_that_there_are():
    values = yaml.safe_load((REPOSITORY / "params.yaml").read_text())
    for document in DOCUMENTS:
        # `data.yaml` and `model.json` are files.
        for section, key in re.findall(r"`([a-z]+)\.((?!(?:yaml|json|onnx)`)[a-z_]+)[`:]", document.read_text()):
            assert section not in values or key in values[section], f"{section}.{key}"
