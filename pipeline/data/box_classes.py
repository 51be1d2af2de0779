"""The classes of the label table's boxes: which names mean which class, and the boxes that several readers drew."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from pipeline.class_names import folded
from pipeline.data.geometry import iou
from pipeline.errors import UserError
from pipeline.escaping import quoted
from pipeline.tables import is_missing

Labels = npt.NDArray[np.int64]

CLASS, READER = "class", "reader"
NO_LABEL = -1
_SHOWN = 20


@dataclass(frozen=True)
class LabelRules:
    """How rows of the label table become boxes of a class.

    Attributes:
        names: class -> the names in the table that mean it, in any case and spacing. Empty: each name is a class.
        drop_others: whether boxes of other names are left out; otherwise they are an error.
        reader_iou: boxes of one class that several readers drew become one above this IoU; 0: all are kept.
    """

    names: Mapping[str, Sequence[str]] = field(default_factory=dict)
    drop_others: bool = False
    reader_iou: float = 0.0


@dataclass(frozen=True)
class Labelled:
    """The classes of a label table.

    Attributes:
        names: name of each class; a box's label is its position.
        labels: label of each row ``[N]``; ``NO_LABEL`` for a row without a box, or whose box is left out.
        dropped: name of another class -> number of its boxes, which are left out.
    """

    names: tuple[str, ...]
    labels: Labels
    dropped: dict[str, int]


def label_rows(path: Path, cells: Sequence[str] | None, has_box: npt.NDArray[np.bool_], rules: LabelRules) -> Labelled:
    """Return the class of each row's box.

    Args:
        path: the label table, for messages.
        cells: the cells of the column ``class``; None: the table has no such column.
        has_box: which rows have a box, ``[N]``.
        rules: the classes and their names.

    Raises:
        UserError: a box has no class although there are several, or one that ``rules`` do not name.
    """
    names = tuple(rules.names)
    if cells is None:
        if len(names) > 1:
            raise UserError(f"{path}: has no column {CLASS!r}, but `classes` has {len(names)} classes of boxes")
        return Labelled(names or ("",), np.where(has_box, 0, NO_LABEL), {})
    given = ["" if is_missing(cell) else cell for cell in cells]
    if not names:
        spelled = sorted({" ".join(given[row].split()) for row in np.flatnonzero(has_box)}) or [""]
        names = tuple({folded(name): name for name in spelled}.values())
    label_of = {folded(name): number for number, name in enumerate(names)}
    label_of |= {folded(alias): names.index(name) for name, aliases in rules.names.items() for alias in aliases}
    if len(names) == 1:
        label_of[""] = 0  # a box without a class can be of this one only
    labels = np.array([label_of.get(folded(cell), NO_LABEL) for cell in given], np.int64)
    others = Counter(given[row] for row in np.flatnonzero(has_box & (labels == NO_LABEL)))
    if others and not rules.drop_others:
        raise UserError(f"{path}: boxes of classes that `classes` does not name: {_counted(others)}; name them there,"
                        " or set data.other_classes: drop")  # fmt: skip
    return Labelled(names, np.where(has_box, labels, NO_LABEL), dict(others))


def _counted(names: Counter[str]) -> str:
    shown = [f"{quoted(name, 40) if name else 'none'} {count}" for name, count in names.most_common(_SHOWN)]
    more = len(names) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")


def merge_readers(boxes: pd.DataFrame, iou_thresh: float) -> pd.DataFrame:
    """Replace each study's boxes of one class that overlap by their mean: weighted boxes fusion with equal weights.

    Solovyev et al. 2021: a box joins the fused box of its class that it overlaps most, if by more than the threshold.

    Args:
        boxes: columns ``patientId``, ``x``, ``y``, ``width``, ``height``, ``label``; one row per reader's box.
        iou_thresh: IoU above which two boxes are one finding.
    """
    columns = ["x", "y", "width", "height"]
    parts = [boxes[:0]]
    for _, rows in boxes.groupby(["patientId", "label"], sort=False):
        fused = fuse_equal(rows[columns].to_numpy(np.float64), iou_thresh)
        same = rows.iloc[: len(fused)]  # for the study and the label
        parts.append(same.assign(**dict(zip(columns, fused.T, strict=True))))
    return pd.concat(parts, ignore_index=True)


def fuse_equal(boxes: npt.NDArray[np.float64], iou_thresh: float) -> npt.NDArray[np.float64]:
    """Fuse boxes ``[N, 4]`` x, y, width, height of equal weight, in their order."""
    clusters: list[list[int]] = []
    means = np.zeros((0, 4))
    for row, box in enumerate(boxes):
        overlap = iou(box, means)[0]
        best = int(overlap.argmax()) if len(clusters) else -1
        if len(clusters) and overlap[best] > iou_thresh:
            clusters[best].append(row)
            means[best] = boxes[clusters[best]].mean(0)
        else:
            clusters.append([row])
            means = np.concatenate([means, box[None]])
    return means
