"""``report.html``: one page with the numbers, curves, pictures and where the model came from."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from pipeline.evaluation.comparison import Comparison
from pipeline.evaluation.subgroups import METRICS
from pipeline.evaluation.summary import Summary

_TEMPLATE = "report.html.jinja"

HEADLINE = {
    "rsna_score": "RSNA score",
    "map": "mAP (IoU .50 to .95)",
    "map_50": "mAP at IoU .50",
    "map_75": "mAP at IoU .75",
    "froc_mean": "Sensitivity, mean over 1/8 to 8 false positives per image",
    "froc_0.25": "Sensitivity at 0.25 false positives per image",
    "froc_1": "Sensitivity at 1 false positive per image",
    "auroc": "AUROC (image level)",
    "average_precision": "Average precision (image level)",
    "sensitivity": "Images with an opacity that get a report",
    "specificity": "Images without that get none",
    "calibration_error": "Calibration error (image level; 0 is best)",
}


@dataclass(frozen=True)
class Picture:
    """An example: its id, a line below it, and the picture as a data URI."""

    patient_id: str
    caption: str
    uri: str


@dataclass(frozen=True)
class Page:
    """What the report shows.

    Attributes:
        metrics: summary of each split.
        champion: the version that the model is compared with, and the comparison; None where there is none.
        subgroups: see `subgroup_table`; of the test split.
        curves: title -> PNG bytes.
        pictures: title of a row -> its examples.
        data: a row for each split of what is in it.
        provenance: name -> value.
        params: the whole params file.
    """

    metrics: Mapping[str, Summary]
    champion: tuple[str, Comparison] | None
    subgroups: pd.DataFrame
    curves: Mapping[str, bytes]
    pictures: Mapping[str, list[Picture]]
    data: Sequence[Mapping[str, object]]
    provenance: Mapping[str, str]
    params: str


def render_report(page: Page) -> str:
    """The page as HTML that needs no other file and no network."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    encoded = {name: "data:image/png;base64," + base64.b64encode(data).decode() for name, data in page.curves.items()}
    groups = page.subgroups.astype(object).where(page.subgroups.notna(), None).to_dict("records")
    return environment.get_template(_TEMPLATE).render(
        page=page, headline=HEADLINE, curves=encoded, groups=groups, group_metrics=METRICS
    )
