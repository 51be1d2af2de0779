"""Facts and links of the report."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from pipeline.assembly.report_page import _duration, _facts, _links


def run(seconds):
    return SimpleNamespace(seconds_between_values=lambda key: seconds, address=lambda: "http://127.0.0.1:5000/#/x")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "0 min 0 s"), (65, "1 min 5 s"), (3599.6, "1 h 0 min"), (7260, "2 h 1 min"), (90_000, "25 h 0 min")],
)
def test_durations(seconds, text):
    assert _duration(seconds) == text


def test_facts_say_when_where_and_with_what():
    facts = _facts(run(65), SimpleNamespace(ensemble=None))
    assert facts["Training"] == "1 min 5 s from the first step to the last"
    assert facts["Evaluated"].endswith(" UTC")
    assert "CPU cores" in facts["Machine"]
    assert "torch 2" in facts["Versions"]
    assert "Training" not in _facts(run(None), SimpleNamespace(ensemble=None))
    assert "Training" not in _facts(run(65), SimpleNamespace(ensemble=object()))  # of several runs


def test_links_lead_to_what_is_there(tmp_path):
    assert list(_links(run(1), tmp_path)) == ["the run in MLflow", "model card", "data card"]
    Path(tmp_path, "data.html").touch()
    assert _links(run(1), tmp_path)["the data set"] == "data.html"
