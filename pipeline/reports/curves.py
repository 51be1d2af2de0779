"""The curves of a split: tables for DVC's plots, and pictures for the report and MLflow."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import pandas as pd

from pipeline.metrics.calibration import (
    Calibration,
    Calibrations,
    calibrations_of,
    image_probabilities,
    scores_before,
)
from pipeline.metrics.image_level import reliability
from pipeline.metrics.ranking import rank_detections
from pipeline.metrics.results import Floats, ImageResult, Thresholds, each_class, has_truth, image_scores, thresholds_of
from pipeline.metrics.rsna_score import mean_score, rsna_score, scores_by_count
from pipeline.reports.figures import plt, png

# Whole numbers divided by 100, so that each equals its decimal literal; steps of .01 do not give that.
THRESHOLDS = np.arange(101) / 100
BEFORE = " before"
_MOST_LINES = 6
# Lines of at most so many points have dots.
MOST_DOTS = 10


def precision_recall(results: Sequence[ImageResult]) -> pd.DataFrame:
    """Compute ``recall``, ``precision`` and ``score_thresh`` after each detection, at IoU .5."""
    ranking = rank_detections(results)
    true_positives = np.cumsum(ranking.hit[0])
    recall = true_positives / max(1, ranking.truths.sum())
    precision = true_positives / np.arange(1, len(recall) + 1)
    return pd.DataFrame({"recall": recall, "precision": precision, "score_thresh": ranking.scores}).round(5)


def froc_curve(results: Sequence[ImageResult]) -> pd.DataFrame:
    """Compute ``false_positives_per_image``, ``sensitivity`` and ``score_thresh`` after each detection, at IoU .5."""
    ranking = rank_detections(results)
    rates = np.cumsum(~ranking.hit[0]) / len(results)
    sensitivity = np.cumsum(ranking.hit[0]) / max(1, ranking.truths.sum())
    columns = {"false_positives_per_image": rates, "sensitivity": sensitivity, "score_thresh": ranking.scores}
    return pd.DataFrame(columns).round(5)


def roc(results: Sequence[ImageResult]) -> pd.DataFrame:
    """Compute images' ``false_positive_rate`` and ``sensitivity`` at each score; empty without both kinds of images."""
    from sklearn.metrics import roc_curve

    positive = has_truth(results)
    if positive.all() or not positive.any():
        return pd.DataFrame({"false_positive_rate": [], "sensitivity": []})
    # Ranks replace the scores, because scikit-learn refuses the -inf of an image without detections.
    ranks = np.unique(image_scores(results), return_inverse=True)[1]
    false_rate, sensitivity, _ = roc_curve(positive, ranks)
    return pd.DataFrame({"false_positive_rate": false_rate, "sensitivity": sensitivity}).round(5)


def calibration(results: Sequence[ImageResult], fitted: Calibration | None = None) -> pd.DataFrame:
    """Compute ``image_score``, ``share_of_positives`` and ``images`` for those of ten score bins that have images."""
    return _reliability(image_probabilities(results, fitted), results)


def calibration_before(results: Sequence[ImageResult], fitted: Calibration | None = None) -> pd.DataFrame:
    """Compute the table of `calibration` for the network's own scores."""
    return _reliability(scores_before(results, fitted), results)


def _reliability(probabilities: Floats, results: Sequence[ImageResult]) -> pd.DataFrame:
    scores, share, images = reliability(probabilities, has_truth(results))
    return pd.DataFrame({"image_score": scores, "share_of_positives": share, "images": images}).round(5)


def threshold_curve(results: Sequence[ImageResult]) -> pd.DataFrame:
    """Compute the ``rsna_score`` at each ``score_thresh``."""
    curves = [scores_by_count(result) for result in results]
    values = [
        mean_score(
            np.array([curve[(result.scores > threshold).sum()] for curve, result in zip(curves, results, strict=True)])
        )
        for threshold in THRESHOLDS
    ]
    return pd.DataFrame({"score_thresh": THRESHOLDS, "rsna_score": values}).round(5)


class Curve(NamedTuple):
    """The rules of a curve: its table, the columns of its axes, the end of the x axis, whether its line has steps."""

    make: Callable[[Sequence[ImageResult]], pd.DataFrame]
    x: str
    y: str
    end: float = 1
    steps: bool = True
    diagonal: bool = False


CURVES = {
    "precision_recall": Curve(precision_recall, "recall", "precision"),
    "froc": Curve(froc_curve, "false_positives_per_image", "sensitivity", end=8),
    "roc": Curve(roc, "false_positive_rate", "sensitivity", diagonal=True),
    "calibration": Curve(calibration, "image_score", "share_of_positives", steps=False, diagonal=True),
    "threshold": Curve(threshold_curve, "score_thresh", "rsna_score", steps=False),
}


def curve_tables(
    results: Mapping[str, Sequence[ImageResult]], fitted: Calibrations = None, classes: Sequence[str] = ("",)
) -> dict[str, pd.DataFrame]:
    """Make the table of each curve of `CURVES` over all splits, with a column ``split``.

    Those of the calibration are made for the calibrated scores and, if there is a calibration, for those before it.
    With several classes there is a curve for each, and ``split`` is such as ``test, nodule``.
    """
    maps = [None] * len(classes) if fitted is None else calibrations_of(fitted)
    tables: dict[str, list[pd.DataFrame]] = {name: [] for name in CURVES}
    for split, every in results.items():
        for name, part, own in zip(classes, each_class(every, len(classes)), maps, strict=True):
            title = split if len(classes) == 1 else f"{split}, {name}"
            for curve, kind, made in _makers(own):
                tables[curve].append(made(part).assign(split=title + kind))
    joined = {name: pd.concat(parts, ignore_index=True) for name, parts in tables.items()}
    before = joined["calibration"]["split"].str.endswith(BEFORE)
    joined["calibration"] = pd.concat(
        [joined["calibration"][~before], joined["calibration"][before]], ignore_index=True
    )
    return joined


def operating_points(
    results: Sequence[ImageResult], thresholds: Thresholds, fitted: Calibrations, classes: Sequence[str]
) -> dict[str, pd.DataFrame]:
    """Return the place of the operating threshold on each curve of `CURVES`: columns ``x``, ``y``, ``label``.

    On the curve of the calibration, it is the probability of an image whose best detection has the threshold's score.
    A class whose place is not defined has no row.
    """
    levels = thresholds_of(thresholds)
    maps = [None] * len(levels) if fitted is None else calibrations_of(fitted)
    rows: dict[str, list[tuple[float, float, str]]] = {name: [] for name in CURVES}
    for part, level, own, name in zip(each_class(results, len(levels)), levels, maps, classes, strict=True):
        label = f"{name or 'threshold'} {level:.3f}" if len(levels) > 1 else f"threshold {level:.3f}"
        for curve, (x, y) in _points(part, level, own).items():
            if np.isfinite(x) and np.isfinite(y):
                rows[curve].append((x, y, label))
    return {name: pd.DataFrame(found, columns=["x", "y", "label"]) for name, found in rows.items()}


def _points(results: Sequence[ImageResult], level: float, fitted: Calibration | None) -> dict[str, tuple[float, float]]:
    ranking = rank_detections(results)
    above = ranking.scores > level
    hits, truths = float((ranking.hit[0] & above).sum()), max(1, int(ranking.truths.sum()))
    positive, alarm = has_truth(results), image_scores(results) > level
    with np.errstate(invalid="ignore", divide="ignore"):
        precision = np.float64(hits) / above.sum()
        rates = ((~positive & alarm).sum() / (~positive).sum(), (positive & alarm).sum() / positive.sum())
    probability = level if fitted is None else float(fitted.image_probabilities(np.array([level]))[0])
    return {
        "precision_recall": (hits / truths, float(precision)),
        "froc": ((above.sum() - hits) / len(results), hits / truths),
        "roc": (float(rates[0]), float(rates[1])),
        "calibration": (probability, probability),
        "threshold": (level, float(rsna_score(results, level))),
    }


def _makers(fitted: Calibration | None) -> Iterator[tuple[str, str, Callable[[Sequence[ImageResult]], pd.DataFrame]]]:
    """Yield each curve's name, a suffix for its title, and the function that makes its table."""
    for name, curve in CURVES.items():
        yield name, "", partial(calibration, fitted=fitted) if name == "calibration" else curve.make
    if fitted is not None:
        yield "calibration", BEFORE, partial(calibration_before, fitted=fitted)


def drawn_lines(table: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of the lines that a picture of a curve shows: of many lines, only those of test."""
    many = table["split"].nunique() > _MOST_LINES
    return table[table["split"].str.startswith("test")] if many else table


def plot_curve(name: str, table: pd.DataFrame, points: pd.DataFrame | None = None) -> bytes:
    """Plot a curve as PNG bytes, one line per split; of many lines, only those of test.

    ``points`` are the places of the operating thresholds; see `operating_points`.
    """
    curve = CURVES[name]
    figure, axes = plt.subplots(figsize=(4.6, 3.6), dpi=110, layout="constrained")
    if curve.diagonal:
        axes.plot([0, 1], [0, 1], color="0.7", linestyle=":")
    for split, rows in drawn_lines(table).groupby("split", sort=False):
        style = "steps-post" if curve.steps else "default"
        marker, line = "o" if len(rows) <= MOST_DOTS else "", "--" if str(split).endswith(BEFORE) else "-"
        axes.plot(rows[curve.x], rows[curve.y], label=str(split), drawstyle=style, marker=marker, linestyle=line)
    if points is not None and len(points):
        axes.scatter(points["x"], points["y"], marker="D", color="black", zorder=3, label="operating threshold")
    axes.set(xlabel=curve.x.replace("_", " "), ylabel=curve.y.replace("_", " "), ylim=(0, 1.02))
    axes.set_xlim(0, curve.end)
    axes.grid(alpha=0.3)
    if len(table):
        axes.legend(fontsize="small" if table["split"].nunique() > _MOST_LINES else None)
    return png(figure)


def plot_training(history: Mapping[str, Sequence[tuple[int, float]]], steps_per_epoch: float) -> bytes:
    """Plot the training losses and val's metrics over epochs, as PNG bytes.

    Args:
        history: ``train/...`` losses by step, and ``val/...`` metrics by epoch: (step or epoch, value).
        steps_per_epoch: number of training steps in an epoch.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.2, 3.4), dpi=110, layout="constrained")
    for key in (key for key in history if key.startswith("train/")):
        steps, values = zip(*history[key], strict=True)
        epochs = [(step + 1) / steps_per_epoch for step in steps]
        left.plot(epochs, values, label=key.removeprefix("train/"), linewidth=1)
    for key in (key for key in history if key.startswith("val/")):
        ends, values = zip(*history[key], strict=True)
        right.plot(ends, values, label=key.removeprefix("val/"), marker="o", markersize=3)
    left.set(xlabel="epoch", ylabel="training loss", ylim=(0, None))
    right.set(xlabel="epoch", ylabel="val", ylim=(0, None))
    for axes in (left, right):
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend()
    return png(figure)
