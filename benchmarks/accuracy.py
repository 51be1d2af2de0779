"""Accuracy after the same seconds of training: this project against detectors that a user could pick instead.

Usage: python -m benchmarks.accuracy DATA [--seconds S] [--seeds N] [--peers torchvision,yolo] [--set KEY=VALUE ...]

DATA is a folder in the challenge's layout. All detectors get the same split and the same prepared images, and train on
this machine one after another; this project ends earlier if its params ask for fewer epochs than fit. The threshold of
each comes from val. Tune on val, and look at test once.
"""

import argparse
import contextlib
import json
import logging
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from benchmarks.contestants import CONTESTANTS, Contest, Outcome
from pipeline.assembly.inputs import SplitData, read_inputs
from pipeline.detection.malloc import keep_freed_memory
from pipeline.errors import UserError, run_main
from pipeline.metrics.bootstrap import Metrics, interval, paired_difference, patient_weights, stable_threshold
from pipeline.params import Params, load_params
from pipeline.stages.preprocess import preprocess
from pipeline.stages.split import split

SHOWN = {"rsna_score": "RSNA", "map": "mAP", "map_50": "mAP at .5", "auroc": "AUROC"}
DRAWS = 2000


def main() -> None:
    arguments = _arguments()
    logging.getLogger().setLevel(logging.WARNING)
    keep_freed_memory()
    values = yaml.safe_load(Path("params.yaml").read_text())
    values["data"]["dir"] = str(arguments.data.resolve())
    for change in arguments.set:
        _set(values, change)
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        Path("params.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
        params = load_params()
        preprocess(params)
        split(params)
        splits = read_inputs(params)
        print(", ".join(f"{name} {len(part.index)}" for name, part in splits.items()), flush=True)
        shipped = Params.model_validate(values)
        outcomes: dict[str, list[Outcome]] = {}
        for number in range(arguments.seeds):
            for name in ("ours", *arguments.peers):
                own = Params.model_validate(values | {"seed": values["seed"] + number})
                contest = Contest(own, splits, arguments.seconds, Path(f"{name}-{number}").resolve())
                outcome = CONTESTANTS[name](contest)
                outcomes.setdefault(name, []).append(outcome)
                # All thresholds come from the same draws of patients, here and in the report.
                print(json.dumps({"name": name, "seed": own.seed, **_row(outcome, splits, shipped)}), flush=True)
        report(outcomes, splits, shipped)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.accuracy", description=__doc__)
    parser.add_argument("data", type=Path, help="data set in the challenge's layout")
    parser.add_argument("--seconds", type=float, default=650, help="seconds of training for each detector")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--peers", type=lambda text: [name for name in text.split(",") if name], default=[])
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a key of params.yaml")
    arguments = parser.parse_args()
    for name in arguments.peers:
        if name not in CONTESTANTS:
            parser.error(f"--peers {name}: must be of {', '.join(CONTESTANTS)}")
    return arguments


def _set(values: dict[str, Any], change: str) -> None:
    key, _, text = change.partition("=")
    *sections, last = key.split(".")
    section = values
    for name in sections:
        section = section.get(name, {})
    if last not in section:
        raise UserError(f"--set {change}: params.yaml has no key {key}")
    section[last] = yaml.safe_load(text)


def _row(outcome: Outcome, splits: Mapping[str, SplitData], params: Params) -> dict[str, Any]:
    """Return the point values of one training, on val and test."""
    row: dict[str, Any] = {"seconds": round(outcome.seconds), "images_per_second": round(outcome.images_per_second, 1)}
    threshold = _threshold(outcome, splits, params)
    for name in ("val", "test"):
        results = outcome.results[name]
        values = Metrics(results, threshold).draws(np.ones((1, len(results))))
        row |= {f"{name}/{key}": round(float(values[key][0]), 4) for key in SHOWN}
    return row | {"note": outcome.note}


def _threshold(outcome: Outcome, splits: Mapping[str, SplitData], params: Params) -> float:
    return stable_threshold(outcome.results["val"], _patients(splits, "val"), 500, params.seed)


def _patients(splits: Mapping[str, SplitData], name: str) -> list[str]:
    groups: list[str] = splits[name].index["groupId"].to_list()
    return groups


def report(outcomes: Mapping[str, Sequence[Outcome]], splits: Mapping[str, SplitData], params: Params) -> None:
    """Print each detector's median over its seeds, and the intervals and paired differences of its median seed."""
    groups = _patients(splits, "test")
    weights = patient_weights(groups, DRAWS, params.seed)
    scored = {}
    print("| | images/s | " + " | ".join(f"test {title}" for title in SHOWN.values()) + " |")
    print("| --- " * (2 + len(SHOWN)) + "|")
    for name, trained in outcomes.items():
        metrics = [Metrics(one.results["test"], _threshold(one, splits, params)) for one in trained]
        points = [one.draws(np.ones((1, len(groups)))) for one in metrics]
        order = sorted(range(len(trained)), key=lambda number: float(points[number]["map"][0]))
        scored[name] = metrics[order[(len(order) - 1) // 2]]
        drawn = scored[name].draws(weights)
        cells = []
        for key in SHOWN:
            low, high = interval(drawn[key])
            cells.append(f"{statistics.median(float(point[key][0]) for point in points):.3f} ({low:.3f} to {high:.3f})")
        speed = statistics.median(one.images_per_second for one in trained)
        print(f"| {name} | {speed:.1f} | " + " | ".join(cells) + " |")
    for name in list(scored)[1:]:
        found = paired_difference(scored["ours"], scored[name], groups, DRAWS, params.seed)
        texts = [f"{SHOWN[key]} {found[key][0]:+.3f} ({found[key][1]:+.3f} to {found[key][2]:+.3f})" for key in SHOWN]
        print(f"ours - {name}: " + ", ".join(texts))


if __name__ == "__main__":
    run_main(main)
