"""Addresses of MLflow's pages, and the texts and columns that they show.

The pages of MLflow 3 open on tools for language models, and their list of runs shows no metric, unless the address says
otherwise: ``workflowType`` selects the pages for training, and ``viewStateShareKey`` names a tag of the experiment with
the columns to show.
"""

import json
from collections.abc import Mapping, Sequence

from pipeline.escaping import markdown_cell

_TRAINING = "workflowType=machine_learning"
_VIEW = "headline"
VIEW_TAG = f"mlflow.sharedViewState.{_VIEW}"
_COLUMNS = ("test/rsna_score", "test/map", "test/map_50", "test/auroc")
VIEW_STATE = json.dumps({"selectedColumns": [f"metrics.`{name}`" for name in _COLUMNS]})

ABOUT = """\
Boxes lung opacities on frontal chest radiographs. Takes DICOM files (base64, column `dicom`) or grey levels 0 to 255
(rows of pixels, column `image`); answers with boxes in pixels of the original image, their scores, both in the RSNA
challenge's format too, and an image score.

An example request, to `pneumoflow serve models:/rsna-retinanet@champion`:

    (echo dicom; base64 -w0 study.dcm) |
      curl -H 'Content-Type: text/csv' --data-binary @- http://127.0.0.1:5001/invocations
"""
# Sections that are written at other times than the text above them.
CHAMPIONS = "\n\n### Champions so far\n\n"
DECISION = "\n\n### Promotion\n\n"
# A run's name has at most so many params, characters of each value, and digits of the run's id.
_NAMED, _VALUE_LENGTH, _ID_LENGTH = 3, 24, 6


def run_page(server: str, experiment: str, run_id: str, file: str = "") -> str:
    """Return the address of a run's page, or of one of its files there; ``server`` may be empty, for a link inside."""
    return f"{server}/#/experiments/{experiment}/runs/{run_id}{file and f'/artifacts/{file}'}?{_TRAINING}"


def runs_page(server: str, experiment: str) -> str:
    """Return the address of the list of runs with the headline metrics."""
    return f"{server}/#/experiments/{experiment}/runs?viewStateShareKey={_VIEW}&{_TRAINING}"


def with_champions(about: str, champions: Sequence[Mapping[str, str]]) -> str:
    """Return a model's description with a table of champions (``version``, ``at``, ``why``), the present one first."""
    rows = [f"| {one['version']} | {_minute(one['at'])} | {markdown_cell(one['why'])} |" for one in reversed(champions)]
    table = "\n".join(["| version | since | why |", "| --- | --- | --- |", *rows])
    return about.partition(CHAMPIONS)[0] + CHAMPIONS + table


def _minute(at: str) -> str:
    """Return a time in ISO's format, to the minute, as people write it."""
    return at[:16].replace("T", " ") + at[19:].replace("+00:00", " UTC") if at else "not known"


def with_decision(description: str, decision: str, why: str) -> str:
    """Return a version's description with the decision about it, and the reasons."""
    return description.partition(DECISION)[0] + DECISION + f"{decision}: {markdown_cell(why)}"


def renewed(text: str, former: str, mark: str) -> str:
    """Return ``text`` with the section of ``former`` that begins with ``mark``, if it has one."""
    _, found, section = former.partition(mark)
    return text + found + section


def run_name(what: str, changes: Sequence[tuple[str, str]] | None, run_id: str) -> str:
    """Return a name that tells a run from others in a narrow column.

    Args:
        what: a few words on what is trained.
        changes: the params that differ from the run before, and their values; None if there is no such run.
        run_id: the run's id; its first digits end the name.
    """
    if changes is None:
        said = what
    elif not changes:
        said = "same params"
    else:
        said = ", ".join(f"{_short(key, changes)} {value[:_VALUE_LENGTH]}" for key, value in changes[:_NAMED])
        said += f", +{len(changes) - _NAMED}" if len(changes) > _NAMED else ""
    return f"{said} · {run_id[:_ID_LENGTH]}"


def _short(key: str, changes: Sequence[tuple[str, str]]) -> str:
    """Return the last part of a params key, or all of it if another change ends with the same."""
    last = key.rpartition(".")[2]
    return last if [one.rpartition(".")[2] for one, _ in changes].count(last) == 1 else key
