"""Comparison of two models on the same images, and the decision whether one should replace the other."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd

from pipeline.evaluation.subgroups import is_small, subgroups
from pipeline.metrics.bootstrap import Metrics, paired_difference
from pipeline.metrics.calibration import Calibrations
from pipeline.metrics.results import ImageResult, Thresholds


@dataclass(frozen=True)
class Scored:
    """A model's results, and of each class the threshold of its reports and the calibration of its scores."""

    results: Sequence[ImageResult]
    threshold: Thresholds
    calibration: Calibrations = None

    def metrics(self) -> Metrics:
        """Return the metrics of these results."""
        return Metrics(self.results, self.threshold, self.calibration)


@dataclass(frozen=True)
class Comparison:
    """The challenger's metrics minus the champion's; None where a difference is not defined.

    Attributes:
        images: number of images compared.
        differences: metric -> value and its 95 % interval, from draws of patients that both models share.
        groups: for each subgroup: kind, group, images, whether it is small, and metric -> difference.
    """

    images: int
    differences: dict[str, tuple[float | None, float | None, float | None]]
    groups: list[dict[str, object]] = field(default_factory=list)


def compare(
    challenger: Scored,
    champion: Scored,
    studies: pd.DataFrame,
    draws: int,
    seed: int,
) -> Comparison:
    """Compare two models on ``studies``; see `subgroup_table`."""
    groups = []
    for kind, group, chosen in subgroups(studies):
        indices = [int(index) for index in np.flatnonzero(chosen)]
        if not indices:
            continue
        ones = np.ones((1, len(indices)))
        parts = [
            replace(model, results=[model.results[index] for index in indices]) for model in (challenger, champion)
        ]
        mine, theirs = (part.metrics().draws(ones) for part in parts)
        differences = {key: known(mine[key][0] - theirs[key][0]) for key in mine}
        positives = sum(len(result.truth) > 0 for result in parts[0].results)
        named: dict[str, object] = {"kind": kind, "group": group, "images": len(indices)}
        groups.append(named | {"small": is_small(len(indices), positives)} | differences)
    patients = studies["groupId"].to_list()
    paired = paired_difference(challenger.metrics(), champion.metrics(), patients, draws, seed)
    return Comparison(len(patients), {key: (known(v), known(a), known(b)) for key, (v, a, b) in paired.items()}, groups)


def known(value: float) -> float | None:
    """Return the value with six decimals, or None for NaN, because JSON has no NaN."""
    return None if np.isnan(value) else round(float(value), 6)


def judge(
    comparison: Comparison, metric: str, margin: float, kinds: Sequence[str], group_margin: float
) -> tuple[bool, list[str]]:
    """Return whether the challenger should replace the champion, and the reasons.

    The lower end of the interval of the difference in ``metric`` must exceed ``margin``, so that the
    challenger is surely better. It must also lose no more than ``group_margin`` in any subgroup of
    ``kinds`` that is not small.
    """
    value, low, high = comparison.differences[metric]
    if value is None or low is None or high is None:
        return False, [f"{metric} is not defined on the {comparison.images} images"]
    better = low > margin
    said = f"{metric} {value:+.4f} (95 % interval {low:+.4f} to {high:+.4f}) on {comparison.images} images"
    reasons = [f"{said}: {'surely' if better else 'not surely'} better by more than {margin:g}"]
    for group in comparison.groups:
        gain = group[metric]
        if gain is None or group["kind"] not in kinds or group["small"]:
            continue
        if float(str(gain)) < -group_margin:
            better = False
            name = f"{group['kind']} {group['group']} ({group['images']} images)"
            reasons.append(f"{name}: {metric} {gain:+.4f}, worse by more than {group_margin:g}")
    return better, reasons
