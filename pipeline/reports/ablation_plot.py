"""Plots of an ablation: the arms of each table beside the paper's figures, and the loss functions."""

import numpy as np
import pandas as pd

from pipeline.reports.figures import plt, png

_TITLES = {
    "a": "a: balanced cross-entropy",
    "b": "b: focal loss",
    "d": "d: hard examples",
    "clahe": "CLAHE",
    "matching": "Matching and soft targets",
}


def plot_ablation(table: pd.DataFrame) -> bytes:
    """Plot a panel per table, as PNG bytes; bars are our mAP on val, dots the paper's AP on COCO (another scale).

    Args:
        table: columns ``table``, ``arm``, ``map``, ``paper_ap`` (percent, NaN where there is none).
    """
    names = list(dict.fromkeys(table["table"]))
    figure, panels = plt.subplots(
        1, len(names), figsize=(1 + 3.6 * len(names), 4.6), dpi=110, squeeze=False, layout="constrained"
    )
    for axes, name in zip(panels[0], names, strict=True):
        rows = table[table["table"] == name]
        positions = np.arange(len(rows))
        axes.bar(positions, rows["map"], color="tab:blue")
        axes.set_xticks(positions, rows["arm"], rotation=60, ha="right", fontsize=8)
        axes.set(title=_TITLES.get(name, name), ylabel="ours: mAP on val (bars)")
        if rows["paper_ap"].notna().any():
            paper = axes.twinx()
            paper.plot(positions, rows["paper_ap"], "o", color="tab:orange")
            paper.set(ylabel="paper: AP on COCO, % (dots)", ylim=(0, 40))
    return png(figure)


def plot_loss_curves(curves: pd.DataFrame) -> bytes:
    """Plot one line per column over ``p_t``, as PNG bytes."""
    figure, axes = plt.subplots(figsize=(5.4, 4.0), dpi=110, layout="constrained")
    for name in curves.columns.drop("p_t"):
        axes.plot(curves["p_t"], curves[name], label=name)
    axes.set(xlabel="probability of the true class", ylabel="loss", ylim=(0, 5), xlim=(0, 1))
    axes.grid(alpha=0.3)
    axes.legend()
    return png(figure)
