"""The page of a drift check: a table, and the distributions of each feature in the reference and the new studies."""

import base64
from collections.abc import Sequence

import numpy as np
import pandas as pd

from pipeline.evaluation.drift import KINDS, NUMBERS, Drift, counts
from pipeline.reports.figures import plt, png
from pipeline.reports.render import render


def render_drift_page(
    drifts: Sequence[Drift], reference: pd.DataFrame, new: pd.DataFrame, model: str, limits: tuple[float, float]
) -> str:
    """Render the page as HTML that needs no other file and no network."""
    picture = "data:image/png;base64," + base64.b64encode(_plot(reference, new)).decode()
    studies = (len(reference), len(new))
    return render("drift.html.jinja", drifts=drifts, picture=picture, studies=studies, model=model, limits=limits)


def _plot(reference: pd.DataFrame, new: pd.DataFrame) -> bytes:
    names = (*NUMBERS, *KINDS)
    figure, panels = plt.subplots(1, len(names), figsize=(3.4 * len(names), 3), dpi=100, layout="constrained")
    for axes, name in zip(panels, names, strict=True):
        if name in NUMBERS:
            both = pd.concat([reference[name], new[name]]).dropna()
            edges = np.linspace(both.min(), max(both.max(), both.min() + 1e-6), 25)
            for table, label in ((reference, "reference"), (new, "new")):
                values = table[name].dropna()
                axes.hist(values, edges, weights=np.full(len(values), 1 / len(values)), alpha=0.55, label=label)
        else:
            kinds = sorted(set(reference[name].fillna("").astype(str)) | set(new[name].fillna("").astype(str)))
            positions = np.arange(len(kinds))
            shares = [part / part.sum() for part in counts(reference[name], new[name])]
            for shift, share, label in ((-0.2, shares[0], "reference"), (0.2, shares[1], "new")):
                axes.bar(positions + shift, share, 0.4, alpha=0.7, label=label)
            axes.set_xticks(positions, [kind or "not known" for kind in kinds])
        axes.set(title=name.replace("_", " "), ylabel="share")
    panels[0].legend()
    return png(figure)
