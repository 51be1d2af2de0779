"""New studies against those that their model was validated on."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd

from pipeline.delivery.inbox import grey_features
from pipeline.delivery.scored import SCORED, read_scored
from pipeline.errors import UserError
from pipeline.evaluation.drift import Drift, measure_drift
from pipeline.evaluation.drift_page import render_drift_page
from pipeline.evaluation.results import ImageResult
from pipeline.files import temporary_folder, write_json, write_text
from pipeline.params import Params
from pipeline.stages.inputs import SplitData
from pipeline.stages.originals import read_originals
from pipeline.tracking import download_artifact, registered_champion

REFERENCE = "reference.csv"
DRIFT_PAGE, DRIFT = "drift.html", "drift.json"
# Of more the statistics gain nothing, and each is decoded.
_MOST = 2000
_COLUMNS = ("view", "grey_mean", "grey_std", "image_score", "findings")


@dataclass(frozen=True)
class Monitored:
    """What came of a check: ``past`` is whether any feature is past its limits."""

    studies: int
    past: bool
    drifts: list[Drift]

    def __str__(self) -> str:
        moved = [f"{one.feature} (PSI {one.psi:.2f})" for one in self.drifts if one.past]
        return f"{self.studies} new studies: " + (
            f"past the limits: {', '.join(moved)}" if moved else "within the limits"
        )


def reference_table(params: Params, val: SplitData, results: Sequence[ImageResult], threshold: float) -> pd.DataFrame:
    """Of val's studies what is known of new ones too: the view, the grey levels, and what the model finds."""
    rows = []
    studies = val.index.iloc[:_MOST]
    radiographs = read_originals(params, studies["patientId"])
    for radiograph, view, result in zip(radiographs, studies["view"], results, strict=False):
        mean, std = grey_features(radiograph.pixels)
        scores = result.scores
        best = float(scores[0]) if len(scores) else 0.0
        rows.append((view, round(mean, 3), round(std, 3), round(best, 6), int((scores > threshold).sum())))
    return pd.DataFrame(rows, columns=_COLUMNS)


def monitor(params: Params, scored: Path, out: Path) -> Monitored:
    """Compare the last studies of ``scored/scored.csv`` with the champion's reference; write a page and ``drift.json``.

    Raises:
        UserError: there is no champion, no table of its studies, or there are too few.
    """
    rules = params.monitor
    champion = registered_champion()
    if champion is None:
        raise UserError("no registered model has the alias champion; run `pneumoflow promote` first")
    new = _new_studies(scored / SCORED, rules.last)
    if len(new) < rules.least:
        raise UserError(f"{scored / SCORED}: {len(new)} studies; monitor.least asks for {rules.least}")
    with temporary_folder() as folder:
        reference = _read(download_artifact(champion.run_id, REFERENCE, folder))
    drifts = measure_drift(reference, new, rules.psi_limit, rules.p_limit)
    found = Monitored(len(new), any(one.past for one in drifts), drifts)
    limits = (rules.psi_limit, rules.p_limit)
    page = render_drift_page(drifts, reference, new, f"version {champion.version}", limits)
    write_text(out / DRIFT_PAGE, page)
    write_json(out / DRIFT, asdict(found))
    return found


def _new_studies(path: Path, last: int) -> pd.DataFrame:
    """The last studies that have a score, nearly empty ones too: that such images arrive is a change as well."""
    rows = [[row[name] for name in _COLUMNS] for row in read_scored(path)]
    table = pd.DataFrame(rows, columns=_COLUMNS, dtype=object).replace("", float("nan"))
    table = table.dropna(subset=_COLUMNS[1:]).tail(last)
    return _as_reference(table.astype(dict.fromkeys(_COLUMNS[1:], float)))


def _as_reference(table: pd.DataFrame) -> pd.DataFrame:
    return table.assign(findings=table["findings"].clip(upper=3)).astype({"findings": "Int64"})


def _read(path: Path) -> pd.DataFrame:
    """A table with our columns; views are words, an empty one too."""
    types: Mapping[str, type] = {"view": str}
    try:
        table = pd.read_csv(path, dtype=dict(types), keep_default_na=True, usecols=list(_COLUMNS))
        return _as_reference(table)
    except (ValueError, TypeError, pd.errors.ParserError) as error:
        raise UserError(f"{path}: not a table of scored studies: {' '.join(str(error).split())}") from None
