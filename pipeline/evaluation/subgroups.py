"""Metrics of subgroups of studies: a model that is good on average may be bad for some of them."""

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd

from pipeline.class_names import split_classes
from pipeline.metrics.bootstrap import Metrics, interval, patient_weights
from pipeline.metrics.matching import match
from pipeline.metrics.results import Bools, ImageResult, Thresholds, each_class, keep, reported, thresholds_of

METRICS = ("rsna_score", "map_50", "auroc", "sensitivity", "specificity")
SMALL_IMAGES, SMALL_POSITIVES = 30, 10
BOX_SIZE = "box size"
# Half-open, because ages in months are not whole years: a patient of 17.5 years is 17.
AGE_BANDS = {
    "0 to 17": (0, 18),
    "18 to 39": (18, 40),
    "40 to 59": (40, 60),
    "60 to 79": (60, 80),
    "80 to 120": (80, 121),
}
# Square root of a box's area over the image's longer side; each range has about a third of the RSNA challenge's boxes.
BOX_SIZES = {"below 0.2": (0.0, 0.2), "0.2 to 0.3": (0.2, 0.3), "0.3 and more": (0.3, 10.0)}


def subgroup_table(
    results: Sequence[ImageResult], studies: pd.DataFrame, score_thresh: Thresholds, draws: int, seed: int
) -> pd.DataFrame:
    """Return a table with a row for each view, sex, age band, class and size of boxes.

    Args:
        results: the result of each study.
        studies: columns ``groupId``, ``view``, ``sex``, ``age``, ``class``, ``height``, ``width``, in the same order.
        score_thresh: of each class; detections above it are reported.
        draws: number of bootstrap draws.
        seed: seed of the draws.

    Returns:
        Columns ``kind``, ``group``, ``images``, ``patients``, ``positives`` (images with a box), ``boxes``, ``small``
        (too few studies for conclusions), and each of `METRICS` with ``_low`` and ``_high``; NaN where it is not
        defined. For a size of boxes, ``sensitivity`` is the share of its boxes that a reported detection hits (IoU at
        least .5). For a class without boxes, 1 - ``specificity`` is the share of its images with a false alarm, and
        the RSNA score, which would be 0, is left out.
    """
    rows: list[dict[str, object]] = []
    for kind, group, chosen in subgroups(studies):
        indices = np.flatnonzero(chosen)
        if not len(indices):
            continue
        part, patients = [results[int(index)] for index in indices], studies["groupId"].iloc[indices].to_list()
        positives = sum(len(result.truth) > 0 for result in part)
        boxes = sum(len(result.truth) for result in part)
        row = _counts(kind, group, len(part), len(set(patients)), positives, boxes)
        row["small"] = is_small(len(part), positives)
        metrics, weights = Metrics(part, score_thresh), patient_weights(patients, draws, seed)
        point, drawn = metrics.draws(np.ones((1, len(part)))), metrics.draws(weights)
        for key in METRICS:
            values = (point[key][0], *interval(drawn[key])) if positives or key != "rsna_score" else (np.nan,) * 3
            row |= dict(zip((key, f"{key}_low", f"{key}_high"), values, strict=True))
        rows.append(row)
    rows += _box_sizes(results, studies, score_thresh, draws, seed)
    return pd.DataFrame(rows)


def _counts(kind: str, group: str, images: int, patients: int, positives: int, boxes: int) -> dict[str, object]:
    counts = {"images": images, "patients": patients, "positives": positives, "boxes": boxes}
    return {"kind": kind, "group": group, **counts}


def is_small(images: int, positives: int) -> bool:
    """Return whether there are too few for conclusions; for a class without boxes only the images count."""
    return images < SMALL_IMAGES or 0 < positives < SMALL_POSITIVES


def subgroups(studies: pd.DataFrame) -> Iterator[tuple[str, str, Bools]]:
    """Yield the kind, the name and the members of each group of studies."""
    for column in ("view", "sex", "class"):
        values = studies[column].fillna("").replace("", "not known").map(split_classes)
        for value in sorted(set(values.explode())):
            yield column, str(value), values.map(lambda own, value=value: value in own).to_numpy(bool)
    age = studies["age"].to_numpy(np.float64)
    known = np.zeros(len(age), bool)
    for name, (low, high) in AGE_BANDS.items():
        chosen = (age >= low) & (age < high)
        known |= chosen
        yield "age", name, chosen
    yield "age", "not known", ~known  # the data have ages of 148 and more


def _box_sizes(
    results: Sequence[ImageResult], studies: pd.DataFrame, score_thresh: Thresholds, draws: int, seed: int
) -> Iterator[dict[str, object]]:
    sides = studies[["height", "width"]].max(axis=1).to_numpy(np.float64)
    kept = [keep(result, reported(result, score_thresh)) for result in results]
    classes = each_class(kept, len(thresholds_of(score_thresh)))
    groups = studies["groupId"]
    for name, limits in BOX_SIZES.items():
        # Half-open, so that no box belongs to two sizes.
        ranges = [((side * limits[0]) ** 2, np.nextafter((side * limits[1]) ** 2, 0)) for side in sides]
        matches = [[match(result, area) for result, area in zip(own, ranges, strict=True)] for own in classes]
        hits = np.array([[one.hit[0].sum() for one in own] for own in matches], np.float64).sum(0)  # (I,)
        boxes = np.array([[one.truths for one in own] for own in matches], np.float64).sum(0)
        some = np.flatnonzero(boxes)
        if not len(some):
            continue
        weights = patient_weights(groups.iloc[some].to_list(), draws, seed)
        row = _counts(BOX_SIZE, name, len(some), groups.iloc[some].nunique(), len(some), int(boxes.sum()))
        row["small"] = boxes.sum() < SMALL_IMAGES
        with np.errstate(invalid="ignore"):
            shares = (weights @ hits[some]) / (weights @ boxes[some])
        row |= dict(zip(("sensitivity", "sensitivity_low", "sensitivity_high"),
                        (hits.sum() / boxes.sum(), *interval(shares)), strict=True))  # fmt: skip
        yield row
