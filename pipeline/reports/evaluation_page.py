"""The page ``report.html``: the numbers, curves and pictures of an evaluation, and the origin of the model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from pipeline.evaluation.comparison import Comparison
from pipeline.evaluation.outcomes import Outcomes
from pipeline.evaluation.subgroups import BOX_SIZE
from pipeline.evaluation.summary import OF_EACH_CLASS, Summary
from pipeline.reports.cases import OUTCOMES, Case
from pipeline.reports.conclusion import conclusion
from pipeline.reports.interactive import Plot, library
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
    "sensitivity": "Images with an opacity that get a report (sensitivity)",
    "specificity": "Images without that get none (specificity)",
    "ppv": "Images with a report that have an opacity (PPV)",
    "npv": "Images without a report that have none (NPV)",
    "calibration_error": "Calibration error (image level; 0 is best)",
    "calibration_error_before": "Calibration error before calibration",
}

# Columns of the subgroups' table.
GROUP_HEADLINE = {
    "rsna_score": "RSNA score",
    "map_50": "mAP at IoU .50",
    "auroc": "AUROC",
    "sensitivity": "Sensitivity",
    "specificity": "Specificity",
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
        outcomes: numbers of test images by outcome.
        champion: the version that the model is compared with, and the comparison; None without a comparison.
        subgroups: the table of the test split's subgroups; see `subgroup_table`.
        plots: interactive figures.
        cases: all test studies.
        pictures: title of a row -> its examples.
        data: one row per split that describes its contents.
        provenance: name -> value.
        facts: name -> value: when, how long, where, with which versions.
        links: title -> address.
        params: the whole params file.
        notes: sentences that a reader must know before the numbers.
        classes: the names of the classes, if there are several.
    """

    metrics: Mapping[str, Summary]
    outcomes: Outcomes
    champion: tuple[str, Comparison] | None
    subgroups: pd.DataFrame
    plots: Sequence[Plot]
    cases: Sequence[Case]
    pictures: Mapping[str, list[Picture]]
    data: Sequence[Mapping[str, object]]
    provenance: Mapping[str, str]
    facts: Mapping[str, str]
    links: Mapping[str, str]
    params: str
    notes: Sequence[str] = ()
    classes: Sequence[str] = ()

    def conclusion(self) -> str:
        """Return what the numbers say, in a few sentences."""
        return conclusion(self.metrics["test"], self.outcomes, self.champion, max(1, len(self.classes)))

    def groups(self) -> list[dict[str, object]]:
        """Return the rows of the subgroups; None where a number is not defined."""
        table = self.subgroups.astype(object).where(self.subgroups.notna(), None)
        return [{str(key): value for key, value in row.items()} for row in table.to_dict("records")]


def render_report(page: Page) -> str:
    """Render the page as HTML that needs no other file and no network."""
    headline = HEADLINE
    if page.classes:
        headline = {key: title.replace("an opacity", "the class") for key, title in HEADLINE.items()}
    groups = page.groups()
    return render(
        _TEMPLATE,
        page=page,
        library=library(),
        headline=headline,
        groups=[row for row in groups if row["kind"] != BOX_SIZE],
        sizes=[row for row in groups if row["kind"] == BOX_SIZE],
        group_headline=GROUP_HEADLINE,
        class_headline={key: title for key, title in headline.items() if key in OF_EACH_CLASS},
        outcome_names=list(OUTCOMES.values()),
    )
