"""The parts of an evaluation's report: curves, pictures, a description of the data, and the origin of it all."""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import pandas as pd
import yaml

from pipeline import provenance
from pipeline.assembly.inputs import SplitData
from pipeline.class_names import split_classes
from pipeline.data.splits import SPLITS
from pipeline.delivery.model_config import LEAK, ModelConfig
from pipeline.files import directory_atomic
from pipeline.metrics.calibration import image_probabilities_of
from pipeline.metrics.results import ImageResult, keep, reported
from pipeline.metrics.rsna_score import image_rsna_scores
from pipeline.params import Params
from pipeline.redaction import redact
from pipeline.reports.cases import Case, describe_cases, most_telling
from pipeline.reports.curves import curve_tables, operating_points, plot_curve, plot_training
from pipeline.reports.drawing import captions, contact_sheet, data_uri, draw_boxes, encode_jpeg
from pipeline.reports.evaluation_page import Picture
from pipeline.reports.examples import pick_examples
from pipeline.tracking import TrackedRun

EXAMPLES_PER_ROW = 4
PICTURE_SIDE = 420
# A case's picture is drawn with this side, at which lines and texts can be read, and then halved.
_SMALL_SIDE = 240
# Training losses and val metrics, and the number of steps in an epoch.
History = tuple[Mapping[str, Sequence[tuple[int, float]]], int]
_HISTORY = ("train/loss", "train/loss_classification", "train/loss_box", "val/map", "val/map_50", "val/rsna_score")


class Curves(NamedTuple):
    """The curves of val and test: name -> table, and name -> places of the operating thresholds on test."""

    tables: Mapping[str, pd.DataFrame]
    points: Mapping[str, pd.DataFrame]


def compute_curves(results: Mapping[str, list[ImageResult]], config: ModelConfig) -> Curves:
    """Compute the curves of `CURVES` for the results of val and test."""
    tables = curve_tables(results, config.calibrations, config.classes)
    return Curves(tables, operating_points(results["test"], config.thresholds, config.calibrations, config.classes))


def write_plots(
    folder: Path,
    results: list[ImageResult],
    test: SplitData,
    config: ModelConfig,
    curves: Curves,
    history: History,
) -> None:
    """Write each curve as a table and a picture, and the examples; ``results`` are those of test."""
    pictures = {name: plot_curve(name, table, curves.points[name]) for name, table in curves.tables.items()}
    with directory_atomic(folder) as target:
        for name, table in curves.tables.items():
            table.to_csv(target / f"{name}.csv", index=False)
            (target / f"{name}.png").write_bytes(pictures[name])
        (target / "training.png").write_bytes(plot_training(*history))
        rows = pick_examples(results, config.thresholds, EXAMPLES_PER_ROW)
        blank = np.zeros((PICTURE_SIDE, PICTURE_SIDE, 3), np.uint8)
        sheet = [_draw(results, test, config, index) for row in rows.values() for index in row] or [blank]
        (target / "examples.jpg").write_bytes(encode_jpeg(contact_sheet(sheet, EXAMPLES_PER_ROW)))


def training_history(run: TrackedRun, params: Params, studies: int) -> History:
    """Return the losses and val metrics of the run that made the model, and the number of steps in an epoch."""
    history = {key: values for key in _HISTORY if (values := run.history(key))}
    train = params.train
    batch = train.batch_size * train.accumulate * train.devices
    return history, math.ceil(studies / batch)


def _draw(
    results: list[ImageResult], data: SplitData, config: ModelConfig, index: int, side: int = PICTURE_SIDE
) -> np.ndarray:
    result, row = results[index], data.index.iloc[index]
    scale = data.image_size / max(row["height"], row["width"])
    found = keep(result, reported(result, config.thresholds))
    return draw_boxes(
        np.atleast_3d(data.images[index])[..., 0],
        found.boxes * scale,
        found.scores,
        result.truth * scale,
        side,
        captions(found.labels, config.classes),
        captions(result.truth_labels, config.classes),
    )


def example_pictures(results: list[ImageResult], data: SplitData, config: ModelConfig) -> dict[str, list[Picture]]:
    """Draw the examples of `pick_examples`."""
    scores = image_rsna_scores(results, config.thresholds)
    rows = pick_examples(results, config.thresholds, EXAMPLES_PER_ROW)
    return {
        title: [
            Picture(
                data.index["patientId"][index],
                f"RSNA score {scores[index]:.2f}; {data.index['class'][index]}",
                data_uri(_draw(results, data, config, index)),
            )
            for index in indices
        ]
        for title, indices in rows.items()
    }


def all_cases(
    results: list[ImageResult], data: SplitData, config: ModelConfig, champion: Mapping[str, float]
) -> list[Case]:
    """Return a case for each study of a split, the most telling ones with a picture; see `describe_cases`."""
    studies = list(data.index[["patientId", "class", "view"]].fillna("").itertuples(index=False, name=None))
    probabilities = np.array([image_probabilities_of(one, config.calibrations).max() for one in results])
    cases = describe_cases(results, config.thresholds, probabilities, studies, champion)
    for place in most_telling(cases):
        picture = _draw(results, data, config, place, _SMALL_SIDE)
        small = cv2.resize(picture, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
        cases[place] = replace(cases[place], picture=data_uri(np.asarray(small, np.uint8)))
    return cases


def describe_splits(splits: Mapping[str, SplitData]) -> list[dict[str, object]]:
    """Describe the contents of each split."""
    rows: list[dict[str, object]] = []
    for name, data in splits.items():
        index = data.index
        age = index["age"][index["age"].between(0, 120)]
        row: dict[str, object] = {"split": name, "images": len(index), "patients": index["groupId"].nunique()}
        row["with boxes"] = sum(len(boxes) > 0 for boxes in data.boxes)
        row["boxes"] = sum(len(boxes) for boxes in data.boxes)
        if len(data.classes) > 1:
            counts = np.bincount(np.concatenate(data.labels), minlength=len(data.classes))
            of_class = zip(data.classes, counts, strict=True)
            row["boxes of each class"] = ", ".join(f"{name} {count}" for name, count in of_class)
        for column in ("class", "view", "sex"):
            each = index[column].fillna("").replace("", "not known").map(split_classes).explode()
            row[column] = ", ".join(f"{value} {count}" for value, count in each.value_counts().items())
        row["median age"] = f"{age.median():.0f}" if len(age) else "not known"
        rows.append(row)
    return rows


def origin(run: TrackedRun, config: ModelConfig, raw: str) -> dict[str, str]:
    """Return the origin of the results: run, commit, data versions, model."""
    hashes = {f"DVC {path}": value for path, value in provenance.input_hashes(raw).items()}
    state = provenance.git_state()
    flow_run = os.environ.get("PNEUMOFLOW_FLOW_RUN_ID")
    rules = config.postprocessing
    return {
        "MLflow run": run.run_id,
        **({"Prefect flow run": flow_run} if flow_run else {}),
        "Git commit": state["git_commit"] + (" with changes" if state["git_dirty"] == "true" else ""),
        **hashes,
        **({"Started from": config.started_from} if config.started_from else {}),
        "Model": f"{config.architecture.backbone}, {config.preprocessing.image_size} px, {_networks(config)}",
        "Chosen on val": f"{rules.overlap_key} {getattr(rules, rules.overlap_key):g}, box_shrink"
        f" {rules.box_shrink:g}, score threshold {_thresholds(config)}",
    }


def _thresholds(config: ModelConfig) -> str:
    levels = config.thresholds
    if len(levels) == 1:
        return f"{levels[0]:.3f}"
    return ", ".join(f"{name} {level:.3f}" for name, level in zip(config.classes, levels, strict=True))


def _networks(config: ModelConfig) -> str:
    if not config.ensemble:
        return f"epoch {config.best_epoch + 1}"
    return f"{config.ensemble.members} networks, one for each fold; val: each study by the network not trained on it"


def notes(config: ModelConfig) -> list[str]:
    """Return what a reader must know before the numbers."""
    rule = f"The threshold's rule: {config.operating_rule}." if config.operating_rule else ""
    leak = f"The starting model ({config.started_from}) {LEAK}." if config.pretraining_leak else ""
    folds = (
        "Numbers of val are those of each fold's network on the studies that it was not trained on; numbers of test are"
        " those of all networks together."
    )
    return [note for note in (leak, rule, folds if config.ensemble else "") if note]


def shared_patients(splits: Mapping[str, SplitData]) -> list[str]:
    """Return a sentence about the patients with studies in several splits, if there are any."""
    patients = pd.concat([splits[name].index["groupId"].drop_duplicates() for name in SPLITS])
    shared = int((patients.value_counts() > 1).sum())
    told = "Patients with studies in several splits, which split.shared_patients allows"
    return [f"{told}: {shared}; scores are too good."] if shared else []


def params_text(params: Params) -> str:
    """Return the whole params, as YAML."""
    return redact(yaml.safe_dump(params.model_dump(mode="json"), sort_keys=False))
