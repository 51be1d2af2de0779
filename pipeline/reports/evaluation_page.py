"""The page ``report.html``: the numbers, curves and pictures of an evaluation, and the origin of the model."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from pipeline.evaluation.comparison import Comparison
from pipeline.evaluation.subgroups import METRICS
from pipeline.evaluation.summary import OF_EACH_CLASS, Summary
from pipeline.reports.render import render

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
    "calibration_error_before": "Calibration error before calibration",
}


@dataclass(frozen=True)
class Picture:
    """An example: its id, its caption, and the picture as a data URI."""

    patient_id: str
    caption: str
    uri: str


@dataclass(frozen=True)
class Page:
    """The contents of the report.

    Attributes:
        metrics: summary of each split.
        champion: the version that the model is compared with, and the comparison; None without a comparison.
        subgroups: the table of the test split's subgroups; see `subgroup_table`.
        curves: title -> PNG bytes.
        pictures: title of a row -> its examples.
        data: one row per split that describes its contents.
        provenance: name -> value.
        params: the whole params file.
        notes: sentences that a reader must know before the numbers.
        classes: the names of the classes, if there are several.
    """

    metrics: Mapping[str, Summary]
    champion: tuple[str, Comparison] | None
    subgroups: pd.DataFrame
    curves: Mapping[str, bytes]
    pictures: Mapping[str, list[Picture]]
    data: Sequence[Mapping[str, object]]
    provenance: Mapping[str, str]
    params: str
    notes: Sequence[str] = ()
    classes: Sequence[str] = ()


def render_report(page: Page) -> str:
    """Render the page as HTML that needs no other file and no network."""
    encoded = {name: "data:image/png;base64," + base64.b64encode(data).decode() for name, data in page.curves.items()}
    groups = page.subgroups.astype(object).where(page.subgroups.notna(), None).to_dict("records")
    headline = HEADLINE
    if page.classes:
        headline = {key: title.replace("an opacity", "the class") for key, title in HEADLINE.items()}
    return render(
        _TEMPLATE,
        page=page,
        headline=headline,
        curves=encoded,
        groups=groups,
        group_metrics=METRICS,
        class_headline={key: title for key, title in headline.items() if key in OF_EACH_CLASS},
    )
