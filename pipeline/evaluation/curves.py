"""Curves of a split: as tables for DVC's plots, and as pictures for the report and MLflow."""

import io
from collections.abc import Mapping, Sequence

import matplotlib as mpl

mpl.use("Agg")  # no display on a server

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from pipeline.evaluation.ranked import rank_detections
from pipeline.evaluation.results import ImageResult
from pipeline.evaluation.rsna_score import mean_score, scores_by_count

THRESHOLDS = np.linspace(0, 1, 101)


def precision_recall(results: Sequence[ImageResult]) -> pd.DataFrame:
    """``recall``, ``precision`` and ``score_thresh`` after each detection, at IoU .5."""
    ranking = rank_detections(results)
    true_positives = np.cumsum(ranking.hit[0])
    recall = true_positives / max(1, ranking.truths.sum())
    precision = true_positives / np.arange(1, len(recall) + 1)
    return pd.DataFrame({"recall": recall, "precision": precision, "score_thresh": ranking.scores}).round(5)


def froc_curve(results: Sequence[ImageResult]) -> pd.DataFrame:
    """``false_positives_per_image`` and ``sensitivity`` after each detection, at IoU .5."""
    ranking = rank_detections(results)
    rates = np.cumsum(~ranking.hit[0]) / len(results)
    sensitivity = np.cumsum(ranking.hit[0]) / max(1, ranking.truths.sum())
    return pd.DataFrame({"false_positives_per_image": rates, "sensitivity": sensitivity}).round(5)


def threshold_curve(results: Sequence[ImageResult]) -> pd.DataFrame:
    """``score_thresh`` and the ``rsna_score`` that it gives."""
    curves = [scores_by_count(result) for result in results]
    values = [
        mean_score(
            np.array([curve[(result.scores > threshold).sum()] for curve, result in zip(curves, results, strict=True)])
        )
        for threshold in THRESHOLDS
    ]
    return pd.DataFrame({"score_thresh": THRESHOLDS, "rsna_score": values}).round(5)


CURVES = {
    "precision_recall": (precision_recall, "recall", "precision"),
    "froc": (froc_curve, "false_positives_per_image", "sensitivity"),
    "threshold": (threshold_curve, "score_thresh", "rsna_score"),
}


def curve_tables(results: Mapping[str, Sequence[ImageResult]]) -> dict[str, pd.DataFrame]:
    """Each curve of `CURVES` over all splits, with a column ``split``."""
    return {
        name: pd.concat([make(part).assign(split=split) for split, part in results.items()], ignore_index=True)
        for name, (make, _, _) in CURVES.items()
    }


def plot_curve(name: str, table: pd.DataFrame) -> bytes:
    """A curve as PNG bytes, one line per split."""
    _, x, y = CURVES[name]
    figure, axes = plt.subplots(figsize=(4.6, 3.6), dpi=110, layout="constrained")
    for split, rows in table.groupby("split", sort=False):
        axes.plot(rows[x], rows[y], label=str(split), drawstyle="default" if name == "threshold" else "steps-post")
    axes.set(xlabel=x.replace("_", " "), ylabel=y.replace("_", " "), ylim=(0, 1.02))
    axes.set_xlim(0, 8 if name == "froc" else 1)
    axes.grid(alpha=0.3)
    axes.legend()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    plt.close(figure)
    return buffer.getvalue()
