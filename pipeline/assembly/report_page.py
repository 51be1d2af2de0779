"""The report's page, assembled from an evaluation's results."""

import os
import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import torch

from pipeline.assembly.champion import AgainstChampion
from pipeline.assembly.inputs import SplitData
from pipeline.assembly.reporting import (
    Curves,
    History,
    all_cases,
    describe_splits,
    example_pictures,
    notes,
    origin,
    params_text,
    shared_patients,
)
from pipeline.delivery.model_config import ModelConfig
from pipeline.evaluation.bands import curve_bands
from pipeline.evaluation.outcomes import best_overlaps, count_outcomes
from pipeline.evaluation.summary import Summary
from pipeline.metrics.calibration import image_probabilities_of
from pipeline.metrics.results import ImageResult, has_truth
from pipeline.params import Params
from pipeline.paths import DATA_CARD, DATA_PAGE, MODEL_CARD
from pipeline.reports.evaluation_page import Page
from pipeline.reports.interactive import Plot, curve_plot, histogram_plot, training_plot
from pipeline.tracking import TrackedRun

_PACKAGES = ("pneumoflow", "torch", "torchvision", "timm", "mlflow")
# Files in the report's folder -> titles of the links to them.
_BESIDE = {DATA_PAGE.name: "the data set", MODEL_CARD: "model card", DATA_CARD: "data card"}
_CAPTIONS = {
    "precision_recall": "Of the detections above a score, the share that hit a box at IoU .5, by the share of boxes"
    " that they hit.",
    "froc": "The share of boxes that are hit at IoU .5, by the number of detections per image that hit none.",
    "roc": "The share of images with a box that get a report, by that of images without one, as the threshold falls.",
    "calibration": "The share of images with a box among those of about the same score; on the dotted line, scores are"
    " probabilities. The mark is the score of an image whose best detection just passes the threshold.",
    "threshold": "The challenge's score at each threshold. The operating threshold was chosen on val, by the median of"
    " many draws of patients, so it need not lie at the top of a line.",
}


def report_page(
    run: TrackedRun,
    params: Params,
    config: ModelConfig,
    results: list[ImageResult],
    splits: Mapping[str, SplitData],
    metrics: Mapping[str, Summary],
    against: AgainstChampion | None,
    subgroups: pd.DataFrame,
    curves: Curves,
    history: History,
    reports: Path,
) -> Page:
    """Return the page; ``results`` and ``subgroups`` are those of test, ``reports`` the folder that it is for."""
    test = splits["test"]
    return Page(
        metrics=metrics,
        outcomes=count_outcomes(results, config.thresholds),
        champion=(against.champion, against.comparison) if against else None,
        subgroups=subgroups,
        plots=_plots(params, config, results, test, curves, history),
        cases=all_cases(results, test, config, against.scores if against else {}),
        pictures=example_pictures(results, test, config),
        data=describe_splits(splits),
        provenance=origin(run, config, params.data.dir),
        facts=_facts(run, config),
        links=_links(run, reports),
        params=params_text(params),
        notes=[*notes(config), *(shared_patients(splits) if params.split.shared_patients == "allow" else [])],
        classes=config.classes if len(config.classes) > 1 else (),
    )


def _plots(
    params: Params,
    config: ModelConfig,
    results: list[ImageResult],
    test: SplitData,
    curves: Curves,
    history: History,
) -> list[Plot]:
    one_class = len(config.classes) == 1
    bands = curve_bands(results, test.index["groupId"].to_list(), params.seed) if one_class else {}
    drawn = [
        curve_plot(name, _CAPTIONS[name], table, curves.points[name], bands.get(name))
        for name, table in curves.tables.items()
    ]
    # A model of several networks had no training of its own: that of each is in its MLflow run.
    kinds = [kind for kind in ("train", "val") if any(key.startswith(f"{kind}/") for key in history[0])]
    training = [training_plot(*history, kind) for kind in kinds]
    return [*drawn, *_histograms(config, results), *training]


def _histograms(config: ModelConfig, results: Sequence[ImageResult]) -> list[Plot]:
    """Plot the overlap of true boxes with reports, and, of one class, the image scores of both kinds of images."""
    overlaps = {"true boxes": best_overlaps(results, config.thresholds)}
    fits = "The largest IoU of each true box with a report of its class; at 0 are boxes that no report touches."
    plots = [histogram_plot("iou", fits, "IoU", overlaps)]
    if len(config.classes) == 1:
        scores = np.array([image_probabilities_of(one, config.calibrations)[0] for one in results])
        positive = has_truth(results)
        parts = {"with a box": scores[positive], "without": scores[~positive]}
        caption = "Scores of the images with and without a box."
        plots.append(histogram_plot("scores", caption, "image score", parts))
    return plots


def _facts(run: TrackedRun, config: ModelConfig) -> dict[str, str]:
    """Return when, how long, where, and with which versions the results were made."""
    machine = f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPU cores"
    machine += f", {psutil.virtual_memory().total / 2**30:.0f} GiB"
    if torch.cuda.is_available():
        machine += f", {torch.cuda.get_device_name()}"
    versions = ", ".join(f"{name} {version(name)}" for name in _PACKAGES)
    facts = {"Evaluated": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"}
    seconds = run.seconds_between_values("train/loss")
    if not config.ensemble and seconds is not None:
        facts["Training"] = f"{_duration(seconds)} from the first step to the last"
    return facts | {"Machine": machine, "Versions": f"Python {platform.python_version()}, {versions}"}


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def _links(run: TrackedRun, reports: Path) -> dict[str, str]:
    """Return links to the run's page, to the cards, and to the data page if it lies in the report's folder."""
    beside = {title: name for name, title in _BESIDE.items() if name != DATA_PAGE.name or (reports / name).exists()}
    return {"the run in MLflow": run.address(), **beside}
