"""Interactive figures for pages that work without a network: values on hover, zoom, and one script for all of them."""

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from bokeh.core.types import ID
from bokeh.embed import json_item
from bokeh.models import ColumnDataSource, HoverTool
from bokeh.plotting import figure
from bokeh.resources import INLINE
from markupsafe import Markup

from pipeline.metrics.results import Floats
from pipeline.reports.curves import BEFORE, CURVES, MOST_DOTS, Curve, drawn_lines

# Colours that colour-blind people can tell apart (Okabe and Ito).
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")
_MOST_POINTS = 500
TITLES = {
    "precision_recall": "Precision and recall of boxes",
    "froc": "Boxes found, by false alarms (FROC)",
    "roc": "Images: alarms and false alarms (ROC)",
    "calibration": "Calibration of image scores",
    "threshold": "RSNA score by threshold",
    "training_train": "Training losses",
    "training_val": "Val during training",
    "iou": "How well found boxes fit",
    "scores": "Image scores",
}


@dataclass(frozen=True)
class Plot:
    """A figure of a page: its name, its title, a caption, and its content for BokehJS, as JSON that is safe in HTML."""

    name: str
    title: str
    caption: str
    content: Markup


def library() -> Markup:
    """Return BokehJS, which draws the plots, as the content of a script element."""
    # The other parts are for widgets, tables, formulae and WebGL, which these plots do not use.
    return Markup(INLINE.js_raw[0])  # noqa: S704 - the library's own file


def curve_plot(
    name: str, caption: str, table: pd.DataFrame, points: pd.DataFrame, band: pd.DataFrame | None = None
) -> Plot:
    """Plot a curve of `CURVES`: a line for each split, the band of test, and the operating thresholds on test."""
    curve = CURVES[name]
    axes = _figure(curve.x, curve.y, (0, curve.end), (0, 1.02))
    if curve.diagonal:
        axes.line([0, 1], [0, 1], color="#999999", line_dash="dotted")
    if band is not None and len(band):
        axes.varea("x", "low", "high", source=_source(band), color=_COLOURS[1], alpha=0.15, legend_label="test, 95 %")
    for colour, (split, rows) in zip(itertools.cycle(_COLOURS), drawn_lines(table).groupby("split", sort=False)):
        _draw_line(axes, curve, str(split), rows.drop(columns="split"), colour)
    if len(points):
        marks = axes.scatter(
            "x", "y", source=_source(points), marker="diamond", size=15, color="black",
            legend_label="operating threshold",
        )  # fmt: skip
        axes.add_tools(HoverTool(renderers=[marks], tooltips=[("", "@label"), ("x", "@x{0.000}"), ("y", "@y{0.000}")]))
    return _plot(axes, name, caption)


def _draw_line(axes: Any, curve: Curve, split: str, rows: pd.DataFrame, colour: str) -> None:
    if len(rows) > _MOST_POINTS:  # a large test split has a hundred thousand
        rows = rows.iloc[np.linspace(0, len(rows) - 1, _MOST_POINTS).round().astype(int)]
    source = _source(rows)
    style = {"source": source, "color": colour, "legend_label": split}
    dash = "dashed" if split.endswith(BEFORE) else "solid"
    draw = partial(axes.step, mode="after") if curve.steps else axes.line
    line = draw(curve.x, curve.y, line_width=2, line_dash=dash, **style)
    shown = [(str(column).replace("_", " "), f"@{{{column}}}{{0.000}}") for column in rows]
    axes.add_tools(HoverTool(renderers=[line], tooltips=[("split", split), *shown]))
    if not curve.steps and len(rows) <= MOST_DOTS:
        axes.scatter(curve.x, curve.y, size=7, **style)


def _source(table: pd.DataFrame) -> ColumnDataSource:
    return ColumnDataSource({str(column): table[column].to_numpy() for column in table})


def training_plot(history: Mapping[str, Sequence[tuple[int, float]]], steps_per_epoch: float, kind: str) -> Plot:
    """Plot the losses of training (``kind`` train) or the metrics of val (``val``) over the epochs.

    ``history`` has ``train/...`` values by step, and ``val/...`` values by epoch.
    """
    captions = {"train": "Losses of training, at each step.", "val": "Metrics of val, after each epoch."}
    axes = _figure("epoch", "loss" if kind == "train" else "val", None, None)
    axes.y_range.start = 0
    names = [key for key in history if key.startswith(f"{kind}/")]
    for number, key in enumerate(names):
        steps, values = zip(*history[key], strict=True)
        epochs = [(step + 1) / steps_per_epoch if kind == "train" else step for step in steps]
        name = key.partition("/")[2]
        line = axes.line(epochs, values, line_width=2, color=_COLOURS[number % len(_COLOURS)], legend_label=name)
        axes.add_tools(HoverTool(renderers=[line], tooltips=[(name, "@y{0.000}"), ("epoch", "@x{0.0}")]))
    return _plot(axes, f"training_{kind}", captions[kind])


def histogram_plot(name: str, caption: str, axis: str, parts: Mapping[str, Floats]) -> Plot:
    """Plot how many values of each part lie in each of twenty bins from 0 to 1."""
    edges = np.linspace(0, 1, 21)
    axes = _figure(axis, "number", (0, 1), None)
    axes.y_range.start = 0
    for number, (title, values) in enumerate(parts.items()):
        counts, _ = np.histogram(values, edges)
        source = ColumnDataSource({"left": edges[:-1], "right": edges[1:], "top": counts})
        bars = axes.quad(
            left="left", right="right", top="top", bottom=0, source=source, alpha=0.5, legend_label=title,
            color=_COLOURS[number], line_color="white",
        )  # fmt: skip
        span = "@left{0.00} to @right{0.00}"
        axes.add_tools(HoverTool(renderers=[bars], tooltips=[(title, "@top"), (axis, span)]))
    return _plot(axes, name, caption)


def _figure(x: str, y: str, x_range: tuple[float, float] | None, y_range: tuple[float, float] | None) -> Any:
    ranges: dict[str, Any] = {name: span for name, span in (("x_range", x_range), ("y_range", y_range)) if span}
    axes = figure(
        height=330, sizing_mode="stretch_width", tools="box_zoom,reset,save", x_axis_label=x.replace("_", " "),
        y_axis_label=y.replace("_", " "), **ranges,
    )  # fmt: skip
    axes.toolbar.logo = None
    axes.toolbar.autohide = True
    return axes


def _plot(axes: Any, name: str, caption: str) -> Plot:
    if axes.legend:
        # Within the axes it would cover lines: they may lie anywhere.
        axes.add_layout(axes.legend[0], "above")
        axes.legend.orientation = "horizontal"
        axes.legend.ncols = 3
        axes.legend.border_line_color = None
        axes.legend.click_policy = "hide"
        axes.legend.label_text_font_size = "11px"
    content = json.dumps(json_item(axes, ID(f"plot-{name}"))).replace("<", "\\u003c")
    return Plot(name, TITLES[name], caption, Markup(content))  # noqa: S704 - no character of it is markup
