"""The page ``data.html``: the contents of a data set and its problems, on one page that needs no network."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pandas as pd

from pipeline.data.annotations import BOX
from pipeline.data.checks import Examination
from pipeline.data.data_issues import DataIssue, Severity, by_rule
from pipeline.data.geometry import xyxy
from pipeline.data.image_statistics import HISTOGRAM_BINS, mean_histogram
from pipeline.data.preprocessing import letterbox
from pipeline.data.reader import Reader, reading_processes
from pipeline.dicom.radiograph import Radiograph
from pipeline.reports.drawing import data_uri, draw_captioned
from pipeline.reports.render import render

_TEMPLATE = "data.html.jinja"
_EXAMPLES = 5
_LISTED = 500
_THUMBNAILS = 24
_THUMBNAIL_SIDE = 160
_HEAT_CELLS = 64


@dataclass(frozen=True)
class Bar:
    """One bar of a chart; ``share`` is its length as a share of the longest bar."""

    label: str
    count: int
    share: float


def render_data_page(examination: Examination, study_seconds: float) -> str:
    """Render the page as HTML; the same data give the same page, whichever command asks for it.

    Args:
        examination: the examined data set.
        study_seconds: the worst studies are read again for their pictures; a study that takes longer has none.
    """
    rows = examination.rows
    return render(
        _TEMPLATE,
        examination=examination,
        issues=by_rule(examination.issues),
        examples=_EXAMPLES,
        listed=_LISTED,
        balance=_balance(rows),
        charts=_charts(examination) if len(rows) else {},
        heat_map=_heat_map(examination) if len(rows) else "",
        greys=_grey_lines(rows) if len(rows) else {},
        worst=_worst(examination, study_seconds) if len(rows) else [],
    )


def _balance(rows: pd.DataFrame) -> pd.DataFrame:
    """Count the studies of each class and view."""
    if not len(rows):
        return pd.DataFrame()
    return pd.crosstab(rows["class"], rows["view"].replace("", "unknown"), margins=True, margins_name="all")


def _charts(examination: Examination) -> dict[str, list[Bar]]:
    rows, boxes = examination.rows, examination.annotations.boxes
    per_study = boxes["patientId"].value_counts()
    counts = rows["patientId"].map(per_study).fillna(0).astype(int)
    sides = _relative_boxes(examination)
    size = np.sqrt(sides[:, 2] * sides[:, 3])
    return {
        "Boxes of a study": _bars(counts.astype(str)),
        "Size of a box (square root of its area, in % of the image)": _histogram(size * 100, np.arange(0, 101, 5)),
        "Age in years": _histogram(rows["age"].to_numpy(np.float64), np.arange(0, 101, 10)),
        "Sex": _bars(rows["sex"].replace("", "unknown")),
        "Longer side in pixels": _bars(rows[["height", "width"]].max(axis=1).astype(str)),
        "Studies, by how many their patient has": _bars(
            rows["groupId"].map(rows["groupId"].value_counts()).astype(str)
        ),
    }


def _bars(values: pd.Series) -> list[Bar]:
    counts = values.value_counts()
    top = sorted(counts.head(12).items(), key=lambda item: (len(str(item[0])), str(item[0])))
    return [Bar(str(label), int(count), count / counts.max()) for label, count in top]


def _histogram(values: npt.NDArray[np.float64], edges: np.ndarray) -> list[Bar]:
    """Count values in bins, from the first bin that has one to the last."""
    known = values[np.isfinite(values)]
    counts, _ = np.histogram(np.minimum(known, edges[-1]), edges)
    bars = [
        Bar(f"{low} to {high}", int(count), count / max(1, counts.max()))
        for low, high, count in zip(edges[:-1], edges[1:], counts, strict=True)
    ]
    some = np.flatnonzero(counts)
    return bars[some[0] : some[-1] + 1] if len(some) else []


def _relative_boxes(examination: Examination) -> npt.NDArray[np.float64]:
    """Return the boxes of the decoded studies in fractions of their image, ``[N, 4]`` x, y, width, height."""
    images = examination.rows[["patientId", "width", "height"]]
    boxes = examination.annotations.boxes.merge(images, on="patientId", suffixes=("", "_image"))
    sides = np.tile(boxes[["width_image", "height_image"]].to_numpy(np.float64), 2)
    return np.asarray(boxes[BOX].to_numpy(np.float64) / sides)


def _heat_map(examination: Examination) -> str:
    """Draw how many boxes cover each place of the image; brighter is more."""
    cover = np.zeros((_HEAT_CELLS, _HEAT_CELLS), np.float64)
    for x, y, width, height in np.round(_relative_boxes(examination) * _HEAT_CELLS).astype(int):
        cover[y : y + height, x : x + width] += 1
    grey = np.asarray(np.round(255 * cover / max(1, cover.max())), np.uint8)
    large = cv2.resize(grey, (320, 320), interpolation=cv2.INTER_LINEAR)
    return data_uri(np.asarray(cv2.applyColorMap(large, cv2.COLORMAP_VIRIDIS), np.uint8))


def _grey_lines(rows: pd.DataFrame) -> dict[str, str]:
    """Return the mean grey-level histogram of each view, as the points of an SVG line in 320 x 120."""
    lines = {}
    for view, part in rows.groupby("view"):
        mean = mean_histogram(part["histogram"])
        x = np.linspace(0, 320, HISTOGRAM_BINS)
        y = 120 * (1 - np.minimum(mean / 0.12, 1))
        lines[str(view) or "unknown"] = " ".join(f"{a:.0f},{b:.1f}" for a, b in zip(x, y, strict=True))
    return lines


@dataclass(frozen=True)
class Thumbnail:
    """A study, its picture and the reason why it is shown."""

    study: str
    uri: str
    caption: str


def _worst(examination: Examination, study_seconds: float) -> list[Thumbnail]:
    captions, boxes = _suspects(examination), examination.annotations.boxes.groupby("patientId")
    paths = [examination.files[key] for key in captions]
    with Reader(reading_processes(), study_seconds) as reader:
        return [
            Thumbnail(key, _thumbnail(radiograph, _boxes_of(boxes, key)), caption)
            for (key, caption), radiograph in zip(captions.items(), reader.read_each(paths), strict=True)
            if isinstance(radiograph, Radiograph)
        ]


def _boxes_of(boxes: Any, study: str) -> npt.NDArray[np.float64]:
    """Return the boxes of a study, ``[N, 4]`` xyxy pixels of its image."""
    if study not in boxes.groups:
        return np.zeros((0, 4))
    return xyxy(boxes.get_group(study)[BOX].to_numpy(np.float64))


def _thumbnail(radiograph: Radiograph, boxes: npt.NDArray[np.float64]) -> str:
    small = letterbox(radiograph.pixels, _THUMBNAIL_SIDE)
    scale = _THUMBNAIL_SIDE / max(radiograph.pixels.shape)
    return data_uri(draw_captioned(small, [], [], boxes * scale, [], _THUMBNAIL_SIDE))


def _suspects(examination: Examination) -> dict[str, str]:
    """Pick the readable studies with a warning, then those with the most unusual grey levels; study -> reason."""
    rows = examination.rows
    readable = set(rows["patientId"])
    warned: list[DataIssue] = [one for one in examination.issues if one.rule.severity is Severity.WARNING]
    captions = {one.study: one.reason() for one in warned if one.study in readable}
    scores = (rows[["mean", "deviation"]] - rows[["mean", "deviation"]].median()).abs()
    scores /= scores.median().clip(lower=1e-6)
    for index in scores.max(axis=1).sort_values(ascending=False, kind="stable").index[:_THUMBNAILS]:
        row = rows.loc[index]
        captions.setdefault(row["patientId"], f"mean {row['mean']:.0f}, deviation {row['deviation']:.0f}")
    return dict(list(captions.items())[:_THUMBNAILS])


def issues_text(examination: Examination, shown: int) -> Sequence[str]:
    """Return the issues as lines for a terminal: each rule with its count and advice, then its first studies."""
    lines = []
    for rule, cases in by_rule(examination.issues).items():
        lines.append(f"{rule.severity}: {rule.title}: {len(cases)}; {rule.advice}")
        lines += [f"  {case.study}: {case.reason()}" for case in cases[:shown]]
        if len(cases) > shown:
            lines.append(f"  and {len(cases) - shown} more")
    return lines
