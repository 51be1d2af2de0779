"""The model card and the data card: what a model and its data are, in Markdown, from the numbers of the report."""

from collections.abc import Mapping
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from pipeline.escaping import markdown_cell
from pipeline.evaluation.subgroups import BOX_SIZE
from pipeline.evaluation.summary import Summary
from pipeline.reports.evaluation_page import HEADLINE, Page


def model_card(page: Page, name: str) -> str:
    """Return the card of the model that a report is about; ``name`` is its registered name."""
    groups = [row for row in page.groups() if row["kind"] != BOX_SIZE]
    return _render("model_card.md.jinja", page=page, name=name, headline=HEADLINE, groups=groups, value=_value)


def data_card(page: Page) -> str:
    """Return the card of the data that the model was trained and tested on."""
    return _render("data_card.md.jinja", page=page, rows=page.data)


def _render(template: str, **values: object) -> str:
    loader = FileSystemLoader(Path(__file__).with_name("templates"))
    # Not HTML: what comes from data goes through the filter `cell`.
    environment = Environment(loader=loader, autoescape=False, undefined=StrictUndefined, trim_blocks=True)  # noqa: S701
    environment.filters["cell"] = markdown_cell
    return environment.get_template(template).render(**values)


def _value(summary: Summary | Mapping[str, object], key: str) -> str:
    """Return a metric with its interval, for a cell; nothing if it is not defined."""
    number, low, high = (summary.get(f"{key}{end}") for end in ("", "_low", "_high"))
    if number is None:
        return ""
    return f"{number:.3f}" + ("" if low is None else f" ({low:.3f} to {high:.3f})")
