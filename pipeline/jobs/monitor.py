"""The comparison of new studies with those that their model was validated on."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd

from pipeline.assembly.reference import COLUMNS
from pipeline.delivery.scored import SCORED, read_scored
from pipeline.errors import UserError
from pipeline.evaluation.drift import Drift, measure_drift
from pipeline.files import temporary_folder, write_json, write_text
from pipeline.params import Params
from pipeline.paths import REFERENCE
from pipeline.reports.drift_page import render_drift_page
from pipeline.tracking import download_artifact, registered_champion

DRIFT_PAGE, DRIFT = "drift.html", "drift.json"


@dataclass(frozen=True)
class Monitored:
    """The result of a check.

    Attributes:
        studies: number of new studies.
        least: number of them that a comparison needs (``monitor.least``).
        past: whether any feature is past its limits.
        drifts: the compared features; empty if there were too few studies.
    """

    studies: int
    least: int
    past: bool
    drifts: list[Drift]

    def __str__(self) -> str:
        if not self.drifts:
            return f"{self.studies} new studies, too few to compare: monitor.least is {self.least}"
        moved = [f"{one.feature} (PSI {one.psi:.2f})" for one in self.drifts if one.past]
        return f"{self.studies} new studies: " + (
            f"past the limits: {', '.join(moved)}" if moved else "within the limits"
        )


def monitor(params: Params, scored: Path, out: Path) -> Monitored:
    """Compare the last studies of ``scored/scored.csv`` with the champion's reference; write a page and ``drift.json``.

    With too few new studies there is no page, and ``drift.json`` has no drifts.

    Raises:
        UserError: there is no champion, or a table of studies is missing.
    """
    section = params.monitor
    champion = registered_champion()
    if champion is None:
        raise UserError("no registered model has the alias champion; run `pneumoflow promote` first")
    new = _new_studies(scored / SCORED, section.last)
    if len(new) < section.least:
        (out / DRIFT_PAGE).unlink(missing_ok=True)  # that of an earlier check
        return _written(Monitored(len(new), section.least, past=False, drifts=[]), out)
    with temporary_folder() as folder:
        reference = _read(download_artifact(champion.run_id, REFERENCE, folder))
    drifts = measure_drift(reference, new, section.psi_limit, section.p_limit)
    monitored = Monitored(len(new), section.least, any(one.past for one in drifts), drifts)
    limits = (section.psi_limit, section.p_limit)
    page = render_drift_page(drifts, reference, new, f"version {champion.version}", limits)
    write_text(out / DRIFT_PAGE, page)
    return _written(monitored, out)


def _written(monitored: Monitored, out: Path) -> Monitored:
    write_json(out / DRIFT, asdict(monitored))
    return monitored


def _new_studies(path: Path, last: int) -> pd.DataFrame:
    """Read the last studies that have a score, nearly empty images too: their arrival is a change as well."""
    rows = [[row[name] for name in COLUMNS] for row in read_scored(path)]
    table = pd.DataFrame(rows, columns=COLUMNS, dtype=object).replace("", float("nan"))
    table = table.dropna(subset=COLUMNS[1:]).tail(last)
    return _as_reference(table.astype(dict.fromkeys(COLUMNS[1:], float)))


def _as_reference(table: pd.DataFrame) -> pd.DataFrame:
    return table.assign(findings=table["findings"].clip(upper=3)).astype({"findings": "Int64"})


def _read(path: Path) -> pd.DataFrame:
    """Read a table with our columns; ``view`` is read as text, even if it is empty."""
    types: Mapping[str, type] = {"view": str}
    try:
        table = pd.read_csv(path, dtype=dict(types), keep_default_na=True, usecols=list(COLUMNS))
        return _as_reference(table)
    except (ValueError, TypeError, pd.errors.ParserError) as error:
        raise UserError(f"{path}: not a table of scored studies: {' '.join(str(error).split())}") from None
