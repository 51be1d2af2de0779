"""The documents' site: it builds without a warning, and its reference is complete."""

import subprocess
import sys

import pytest
import typer
import yaml

from tests.conftest import REPOSITORY

sys.path.insert(0, str(REPOSITORY / "docs"))
import hooks  # type: ignore[import-not-found]

sys.path.pop(0)


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "site/reference/params/index.html").read_text()
    assert "train.weight_decay" in page
    fetched = ("https://fonts.", "https://cdn", "https://unpkg")
    assert not any(address in page for address in fetched)


def leaves(values, prefix=""):
    for key, value in values.items():
        name = f"{prefix}{key}"
        # The space of a sweep is one value.
        yield from leaves(value, f"{name}.") if isinstance(value, dict) and name != "sweep.space" else [name]


def test_each_value_of_the_params_has_bounds_and_a_meaning():
    rows = {}
    for line in hooks.params_page().splitlines():
        if line.startswith("| `"):
            key, _, allowed, meaning = (cell.strip() for cell in line.strip("| ").replace("\\|", "/").split(" | "))
            rows[key.strip("`")] = (allowed, meaning)
    values = yaml.safe_load((REPOSITORY / "params.yaml").read_text())
    assert set(rows) == set(leaves(values))
    assert [key for key, cells in rows.items() if not all(cells)] == []
    assert rows["train.epochs"] == ("whole number, at least 1", "times that all train images are seen")
    assert rows["split.fold"][0] == "whole number, at least 0"
    assert rows["loss.normalizer"][0] == "`per_image`, `batch`, `ema`"


def test_comments_are_read_from_behind_or_above():
    text = "# of the file\n\na: 1\nb:  # of b\n  # of c,\n  # in two lines\n  c: '#no'  # of c itself\n  d: 2\ne: 3\n"
    assert hooks.read_comments(text) == {"a": "", "b": "of b", "b.c": "of c itself", "b.d": "", "e": ""}
    assert hooks.read_comments("# one\n# two\na: 1\n") == {"a": "one two"}


def test_each_option_of_each_command_is_in_the_reference():
    from pipeline.cli import app

    page = hooks.commands_page()
    for name, command in typer.main.get_group(app).commands.items():
        section = page.partition(f"## `pneumoflow {name}`")[2].partition("\n## ")[0]
        options = [option for one in command.params for option in one.opts if option.startswith("--")]
        assert [option for option in options if option not in section] == [], name
