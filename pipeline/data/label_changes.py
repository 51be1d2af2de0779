"""Differences between two versions of a data set's labels: boxes added, removed, moved, or given another class."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.data.annotations import Annotations
from pipeline.data.geometry import iou

ADDED, REMOVED, MOVED, OTHER_CLASS = "added", "removed", "moved", "other class"
KINDS = (ADDED, REMOVED, MOVED, OTHER_CLASS)
STUDY_ADDED, STUDY_REMOVED = "study added", "study removed"
# Overlap from which two boxes of one class are one finding, and from which boxes of two classes are.
_SAME_IOU, _SAME_PLACE_IOU = 0.3, 0.5
# In pixels; a table may round.
_UNMOVED = 0.01


@dataclass(frozen=True)
class Drawn:
    """A box of a version: its class, and x, y, width, height in pixels."""

    name: str
    box: tuple[float, float, float, float]


@dataclass(frozen=True)
class Change:
    """A change of a study: ``kind`` is one of `KINDS`, or says that the study itself is new or gone."""

    study: str
    kind: str
    before: Drawn | None = None
    after: Drawn | None = None

    @property
    def name(self) -> str:
        """Return the class that the change is counted under: that of the newer box, if there is one."""
        one = self.after or self.before
        return one.name if one else ""


def label_changes(before: Annotations, after: Annotations) -> list[Change]:
    """Return the changes from ``before`` to ``after``, by study in the order of ``after``; studies that are gone last.

    Boxes of a class are paired by descending IoU, down to 0.3; then boxes of different classes, down to 0.5.
    """
    old, new = _drawn(before), _drawn(after)
    changes: list[Change] = []
    for key, boxes in new.items():
        if key not in old:
            changes.append(Change(key, STUDY_ADDED))
        changes += _changes_of(key, old.get(key, []), boxes)
    for key, boxes in old.items():
        if key not in new:
            changes.append(Change(key, STUDY_REMOVED))
            changes += [Change(key, REMOVED, before=box) for box in boxes]
    return changes


def counts(changes: Sequence[Change]) -> dict[str, dict[str, int]]:
    """Return class -> kind of change -> number of boxes."""
    found = Counter((change.name, change.kind) for change in changes if change.kind in KINDS)
    return {name: {kind: found[name, kind] for kind in KINDS} for name in sorted({name for name, _ in found})}


def _drawn(annotations: Annotations) -> dict[str, list[Drawn]]:
    keys, one = annotations.studies["patientId"].to_list(), len(annotations.names) == 1
    # The only class of a data set may have a name in one version and none in the other.
    names = ["" if one else name for name in annotations.names]
    each = zip(keys, annotations.boxes_of(keys), annotations.labels_of(keys), strict=True)
    return {
        key: [Drawn(names[label], (x, y, w, h)) for (x, y, w, h), label in zip(boxes.tolist(), labels, strict=True)]
        for key, boxes, labels in each
    }


def _changes_of(key: str, old: Sequence[Drawn], new: Sequence[Drawn]) -> list[Change]:
    overlap = iou(*(np.array([one.box for one in each], np.float64) for each in (old, new)))
    same = np.array([[a.name == b.name for b in new] for a in old], bool).reshape(len(old), len(new))
    pairs = _pairs(np.where(same, overlap, 0.0), _SAME_IOU)
    left = overlap.copy()
    for row, column in pairs:
        left[row, :] = left[:, column] = 0.0
    pairs |= _pairs(np.where(same, 0.0, left), _SAME_PLACE_IOU)
    changes = [Change(key, _kind(old[row], new[column]), old[row], new[column]) for row, column in sorted(pairs)]
    rows, columns = {row for row, _ in pairs}, {column for _, column in pairs}
    return [
        *(change for change in changes if change.kind),
        *(Change(key, REMOVED, before=box) for row, box in enumerate(old) if row not in rows),
        *(Change(key, ADDED, after=box) for column, box in enumerate(new) if column not in columns),
    ]


def _kind(old: Drawn, new: Drawn) -> str:
    """Return the kind of change from one box to the other; an empty text if there is none."""
    if old.name != new.name:
        return OTHER_CLASS
    return MOVED if max(abs(a - b) for a, b in zip(old.box, new.box, strict=True)) > _UNMOVED else ""


def _pairs(overlap: npt.NDArray[np.float64], least: float) -> set[tuple[int, int]]:
    """Pair rows with columns by descending overlap, each once; equal overlaps in their order."""
    order = np.argsort(-overlap, axis=None, kind="stable")
    pairs: set[tuple[int, int]] = set()
    rows, columns = set[int](), set[int]()
    for row, column in zip(*np.unravel_index(order, overlap.shape), strict=True):
        if overlap[row, column] < least:
            break
        if row not in rows and column not in columns:
            pairs.add((int(row), int(column)))
            rows.add(row)
            columns.add(column)
    return pairs
