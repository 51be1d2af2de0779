"""The challenge's tables: which studies there are, of which patient, and where the boxes lie.

Boxes are x, y (top left), width, height in pixels of the original image, as the challenge has them.
"""

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from pipeline.errors import UserError

IMAGES = "stage_2_train_images"
LABELS = "stage_2_train_labels.csv"
CLASSES = "stage_2_detailed_class_info.csv"
GROUPS = "patient_groups.csv"

BOX = ["x", "y", "width", "height"]
OPACITY, NOT_NORMAL, NORMAL = "Lung Opacity", "No Lung Opacity / Not Normal", "Normal"

# Ids end up in file names, tables and pages; they must be plain words.
_PLAIN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


@dataclass(frozen=True)
class Annotations:
    """What the tables say.

    Attributes:
        studies: one row per study in the order of the label table:
            ``patientId`` (an image id), ``groupId`` (the patient), ``class``, ``target`` (0 or 1).
        boxes: one row per box: ``patientId, x, y, width, height``.
        problems: patientId -> why the study cannot be used.
    """

    studies: pd.DataFrame
    boxes: pd.DataFrame
    problems: dict[str, str]

    def boxes_of(self, patient_ids: list[str]) -> list[np.ndarray]:
        """Boxes of each study, ``[N, 4]`` float64 x, y, width, height."""
        grouped = {key: rows[BOX].to_numpy(np.float64) for key, rows in self.boxes.groupby("patientId")}
        return [grouped.get(key, np.zeros((0, 4))) for key in patient_ids]


def xyxy(boxes: np.ndarray) -> np.ndarray:
    """Corners of boxes ``[N, 4]`` that are given as x, y, width, height."""
    return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1)


def read_annotations(folder: Path) -> Annotations:
    """Read the label, class and group tables of a data set in the challenge's layout.

    Raises:
        UserError: the folder or the label table is missing or empty, a column is missing, or an
            id is not a plain word. Problems of single studies are returned, not raised.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; run `dvc pull`, or put a data set in the RSNA layout there")
    labels = read_table(folder / LABELS, ["patientId", *BOX, "Target"])
    if labels.empty:
        raise UserError(f"{folder / LABELS}: has no rows; one row per box or study is needed")
    _require_plain_ids(folder / LABELS, labels["patientId"])
    problems: dict[str, str] = {}
    boxes, targets = _read_boxes(labels, problems)
    studies = pd.DataFrame({"patientId": labels["patientId"].drop_duplicates().to_list()})
    studies["groupId"] = _read_groups(folder / GROUPS, studies["patientId"], problems)
    studies["class"] = _read_classes(folder / CLASSES, studies["patientId"], targets, problems)
    studies["target"] = studies["patientId"].map(targets).astype(int)
    return Annotations(studies, boxes, problems)


def read_table(path: Path, columns: list[str]) -> pd.DataFrame:
    """Read a CSV file as strings and require ``columns``."""
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; a table with the columns {', '.join(columns)} is needed") from None
    except (pd.errors.EmptyDataError, pd.errors.ParserError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a CSV table: {' '.join(str(error).split())}") from None
    missing = [column for column in columns if column not in table.columns]
    if missing:
        raise UserError(f"{path}: column {missing[0]!r} is missing; needs {', '.join(columns)}")
    return table


def _require_plain_ids(path: Path, ids: pd.Series) -> None:
    for line, value in enumerate(ids, start=2):
        if not _PLAIN_ID.fullmatch(value):
            raise UserError(f"{path} line {line}: id {value[:60]!r}: letters, digits, '.', '_' and '-' only")


def _read_boxes(labels: pd.DataFrame, problems: dict[str, str]) -> tuple[pd.DataFrame, dict[str, int]]:
    """Split the label table into boxes and targets; note what contradicts itself."""
    numbers = labels[BOX].apply(pd.to_numeric, errors="coerce")
    has_box = np.asarray(np.isfinite(numbers.to_numpy(np.float64)).all(1))
    blank = np.asarray((labels[BOX] == "").to_numpy().all(1))
    for line, (row, full, empty) in enumerate(zip(labels.itertuples(), has_box, blank, strict=True), start=2):
        target = str(row.Target)
        if target not in ("0", "1"):
            problems[str(row.patientId)] = f"{LABELS} line {line}: Target {target[:20]!r} must be 0 or 1"
        elif (target == "1" and not full) or (target == "0" and not empty):
            rule = "needs four numbers" if target == "1" else "must have no box"
            problems[str(row.patientId)] = f"{LABELS} line {line}: Target {target} {rule}"
    boxes = numbers[has_box].assign(patientId=labels["patientId"][has_box])[["patientId", *BOX]]
    for key in boxes["patientId"][boxes.duplicated()]:
        problems[key] = f"{LABELS}: the same box twice"
    for key in boxes["patientId"][(boxes[["width", "height"]] <= 0).any(axis=1)]:
        problems[key] = f"{LABELS}: a box without width or height"
    positive = labels["Target"] == "1"
    both = set(labels["patientId"][positive]) & set(labels["patientId"][~positive])
    problems.update(dict.fromkeys(both, f"{LABELS}: Target 0 and Target 1 for one study"))
    targets = dict.fromkeys(labels["patientId"], 0) | dict.fromkeys(labels["patientId"][positive], 1)
    return boxes.reset_index(drop=True), targets


def _read_groups(path: Path, ids: pd.Series, problems: dict[str, str]) -> list[str]:
    if not path.exists():
        return ids.to_list()  # each image its own patient: all that can be known without the table
    table = read_table(path, ["patientId", "groupId"])
    groups = dict(zip(table["patientId"], table["groupId"], strict=True))
    _require_plain_ids(path, table["groupId"])
    for key in ids:
        if key not in groups:
            problems.setdefault(key, f"{GROUPS}: no group for this study, so it might leak between splits")
    return [groups.get(key, key) for key in ids]


def _read_classes(path: Path, ids: pd.Series, targets: dict[str, int], problems: dict[str, str]) -> list[str]:
    if not path.exists():
        return [OPACITY if targets[key] else "No Lung Opacity" for key in ids]
    table = read_table(path, ["patientId", "class"])
    classes = dict(zip(table["patientId"], table["class"], strict=True))
    for key in ids:
        if key not in classes:
            problems.setdefault(key, f"{CLASSES}: no class for this study")
        elif (classes[key] == OPACITY) != bool(targets[key]):
            problems.setdefault(key, f"{CLASSES}: class {classes[key][:40]!r} contradicts Target {targets[key]}")
    return [classes.get(key, "") for key in ids]
