"""``report.html``: one page with the numbers, curves, pictures and where the model came from."""

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from pipeline.evaluation.summary import Summary

_TEMPLATE = "report.html.jinja"

HEADLINE = {
    "rsna_score": "RSNA score",
    "map": "mAP (IoU .50 to .95)",
    "map_50": "mAP at IoU .50",
    "map_75": "mAP at IoU .75",
    "auroc": "AUROC (image level)",
    "froc_0.25": "Sensitivity at 0.25 false positives per image",
    "froc_1": "Sensitivity at 1 false positive per image",
}


@dataclass(frozen=True)
class Picture:
    """An example: its id, a line below it, and the picture as a data URI."""

    patient_id: str
    caption: str
    uri: str


def render_report(
    metrics: Mapping[str, Summary],
    curves: Mapping[str, bytes],
    pictures: Mapping[str, list[Picture]],
    provenance: Mapping[str, str],
) -> str:
    """The page as HTML that needs no other file and no network.

    Args:
        metrics: summary of each split.
        curves: title -> PNG bytes.
        pictures: title of a row -> its examples.
        provenance: name -> value.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    encoded = {name: "data:image/png;base64," + base64.b64encode(data).decode() for name, data in curves.items()}
    return environment.get_template(_TEMPLATE).render(
        metrics=metrics, headline=HEADLINE, curves=encoded, pictures=pictures, provenance=provenance
    )
