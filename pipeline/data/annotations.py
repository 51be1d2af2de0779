"""The challenge's tables: the studies, the patient of each study, and the boxes.

Boxes are x, y (top left), width, height in pixels of the original image, as in the challenge. The label table may have
two columns more: ``class``, the name of each box's class, and ``reader``, who drew it.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import pandera.pandas as pa
from pandera.errors import SchemaErrors

from pipeline.class_names import folded, join_classes
from pipeline.data.box_classes import CLASS, NO_LABEL, READER, Labelled, LabelRules, label_rows, merge_readers
from pipeline.data.classes import NORMAL, NOT_NORMAL, OPACITY
from pipeline.data.data_issues import RULES, DataIssue, unusable
from pipeline.data.suggestions import likely_cause
from pipeline.errors import UserError
from pipeline.escaping import printable, quoted
from pipeline.tables import as_number, is_missing, read_table, table_exists

IMAGES = "stage_2_train_images"
LABELS = "stage_2_train_labels.csv"
CLASSES = "stage_2_detailed_class_info.csv"
GROUPS = "patient_groups.csv"

BOX = ["x", "y", "width", "height"]

# Ids become part of file names, tables and pages, so they must be plain words.
_PLAIN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


@dataclass(frozen=True)
class Annotations:
    """The content of the tables.

    Attributes:
        studies: one row per study in the order of the label table:
            ``patientId`` (an image id), ``groupId`` (the patient), ``class``, ``target`` (0 or 1).
        boxes: one row per box: ``patientId, x, y, width, height, label``; the label is a position in ``names``.
        issues: the problems of the tables.
        grouped: whether there is a table of patients.
        names: the classes of boxes.
        dropped: name of another class -> number of its boxes, which are left out.
    """

    studies: pd.DataFrame
    boxes: pd.DataFrame
    issues: list[DataIssue]
    grouped: bool
    names: tuple[str, ...] = ("",)
    dropped: dict[str, int] = field(default_factory=dict)

    @property
    def problems(self) -> dict[str, str]:
        """Map each unusable study to the first reason why it cannot be used."""
        return unusable(self.issues)

    def boxes_of(self, patient_ids: list[str]) -> list[np.ndarray]:
        """Return the boxes of each study, ``[N, 4]`` float64 x, y, width, height."""
        grouped = {key: rows[BOX].to_numpy(np.float64) for key, rows in self.boxes.groupby("patientId")}
        return [grouped.get(key, np.zeros((0, 4))) for key in patient_ids]

    def labels_of(self, patient_ids: list[str]) -> list[np.ndarray]:
        """Return the label of each box of `boxes_of`, ``[N]`` int64."""
        grouped = {key: rows["label"].to_numpy(np.int64) for key, rows in self.boxes.groupby("patientId")}
        return [grouped.get(key, np.zeros(0, np.int64)) for key in patient_ids]


def read_annotations(
    folder: Path, labels: Path | None = None, *, rules: LabelRules | None = None, with_classes: bool = True
) -> Annotations:
    """Read the label, class and group tables of a data set in the challenge's layout.

    Args:
        folder: the folder of the tables; those of classes and groups are optional.
        labels: the label table, if it has another name or place.
        rules: the classes of boxes; None: each name in the label table is a class.
        with_classes: whether the caller needs the class table of studies.

    Raises:
        UserError: the folder or the label table is missing or empty, a table cannot be read, or an
            id is not a plain word. Problems of single studies are returned, not raised.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; run `dvc pull`, or put a data set in the RSNA layout there")
    path = labels or folder / LABELS
    table = read_table(path, ["patientId", *BOX, "Target"], numbers=[*BOX, "Target"], optional=[CLASS, READER])
    if table.empty:
        raise UserError(f"{path}: has no rows; one row per box or study is needed")
    _require_plain_ids(path, "patientId", table["patientId"])
    rows, has_box = _with_numbers(table)
    rules = rules or LabelRules()
    labelled = label_rows(path, table[CLASS].to_list() if CLASS in table else None, has_box, rules)
    rows["label"], rows["reader"] = labelled.labels, table.get(READER, "")
    ids = rows["patientId"].drop_duplicates().to_list()
    left_out = has_box & (labelled.labels == NO_LABEL)
    positive = (rows["Target"] == "1") & ~left_out
    targets = dict.fromkeys(rows["patientId"], 0) | dict.fromkeys(rows["patientId"][positive], 1)
    issues = list(_broken(_LABEL_RULES, rows, path.name, table))
    boxes = rows.loc[has_box & ~left_out, ["patientId", *BOX, "label"]].reset_index(drop=True)
    if READER in table and rules.reader_iou:
        boxes = merge_readers(boxes, rules.reader_iou)
    groups = _read_groups(folder / GROUPS, ids, issues)
    classes = _read_classes(folder / CLASSES if with_classes else None, ids, targets, issues)
    if classes is None or len(labelled.names) > 1:
        classes = _classes_of_boxes(ids, targets, boxes, labelled, classes)
    target = [targets[key] for key in ids]
    studies = pd.DataFrame({"patientId": ids, "groupId": groups, "class": classes, "target": target})
    return Annotations(studies, boxes, issues, table_exists(folder / GROUPS), labelled.names, labelled.dropped)


def _classes_of_boxes(
    ids: Sequence[str],
    targets: Mapping[str, int],
    boxes: pd.DataFrame,
    labelled: Labelled,
    classes: Sequence[str] | None,
) -> list[str]:
    """Return a study's classes of boxes as its class; without boxes, the one that the class table names."""
    one = len(labelled.names) == 1
    challenge = one and folded(labelled.names[0]) in ("", folded(OPACITY))
    found: dict[str, set[int]] = {}
    for key, label in zip(boxes["patientId"], boxes["label"], strict=True):
        found.setdefault(str(key), set()).add(int(label))
    positive = OPACITY if challenge else labelled.names[0]
    negative = classes or ["No Lung Opacity" if challenge else "no finding"] * len(ids)

    def of_boxes(key: str) -> str:
        return positive if one else join_classes(labelled.names[label] for label in sorted(found.get(key, ())))

    return [of_boxes(key) if targets[key] else other for key, other in zip(ids, negative, strict=True)]


def _require_plain_ids(path: Path, column: str, ids: pd.Series) -> None:
    for line, value in ids.items():
        if not _PLAIN_ID.fullmatch(value):
            raise UserError(
                f"{path} line {line}: id {quoted(value)}: letters, digits, '.', '_' and '-' only,"
                f" at most 128, the first a letter or a digit (column {column!r})"
            )


def _with_numbers(table: pd.DataFrame) -> tuple[pd.DataFrame, np.ndarray]:
    """Return the label table with its boxes as numbers, and which rows have all four numbers of a box."""
    numbers = table[BOX].map(as_number).astype(np.float64)
    whole = np.isfinite(numbers.to_numpy()).all(1)
    blank = (table[BOX] == "").all(axis=1)
    made = numbers.assign(patientId=table["patientId"], Target=table["Target"].map(_target), whole=whole, blank=blank)
    return made, whole


def _target(cell: str) -> str:
    """Return ``0`` or ``1`` if the cell can mean nothing else, as 1.0 and TRUE do; otherwise the cell."""
    word = {"true": "1", "false": "0"}.get(cell.lower())
    return word or {0.0: "0", 1.0: "1"}.get(as_number(cell), cell)


def _rule(name: str, holds: Callable[[pd.DataFrame], pd.Series]) -> pa.Check:
    return pa.Check(holds, name=name, error=name)


def _one_value(name: str, column: str) -> pa.Check:
    return _rule(name, lambda table: table[column].groupby(table["patientId"]).transform("nunique").eq(1))


# Each check has the name of one of RULES, and a row passes or breaks it.
_LABEL_RULES = pa.DataFrameSchema(
    checks=[
        _rule("target", lambda table: table["Target"].isin(["0", "1"])),
        _rule("positive_has_box", lambda table: (table["Target"] != "1") | table["whole"]),
        _rule("negative_has_no_box", lambda table: (table["Target"] != "0") | table["blank"]),
        _rule("box_area", lambda table: ~table["whole"] | (table[["width", "height"]] > 0).all(axis=1)),
        _rule(
            "box_once",
            lambda table: (table["label"] < 0) | ~table.duplicated(["patientId", *BOX, "label", "reader"]),
        ),
        _one_value("one_target", "Target"),
    ],
)
_CLASS_RULES = pa.DataFrameSchema(
    checks=[
        _rule("class_name", lambda table: table["class"].isin([OPACITY, NOT_NORMAL, NORMAL])),
        _one_value("one_class", "class"),
    ],
)
_GROUP_RULES = pa.DataFrameSchema(checks=[_one_value("one_group", "groupId")])
_CLASS_RULE = f"Target 1 goes with {OPACITY!r}, Target 0 with {NOT_NORMAL!r} or {NORMAL!r}"
# Rule -> the columns whose values show that it is broken, and the values that are accepted.
_ACCEPTED: Mapping[str, tuple[list[str], str]] = {
    "target": (["Target"], "0, 1, 0.0, 1.0, FALSE or TRUE is accepted"),
    "positive_has_box": (BOX, "numbers are accepted"),
    "negative_has_no_box": (BOX, "empty, NA, NaN, N/A, null and None are accepted"),
    "box_area": (["width", "height"], "numbers above 0 are accepted"),
    "box_once": (BOX, "each box has one row"),
    "one_target": (["Target"], "all rows of a study have one Target"),
    "class_name": (["class"], _CLASS_RULE),
    "one_class": (["class"], "all rows of a study have one class"),
    "one_group": (["groupId"], "a study is of one patient"),
}


def _broken(schema: pa.DataFrameSchema, rows: pd.DataFrame, name: str, table: pd.DataFrame) -> Iterator[DataIssue]:
    """Yield each rule that a row breaks, with the row's line in the file and its values in ``table``, as read."""
    try:
        schema.validate(rows, lazy=True)
    except SchemaErrors as errors:
        failures = errors.failure_cases[["check", "index"]].drop_duplicates().sort_values("index", kind="stable")
        for rule, line in failures.itertuples(index=False):
            columns, accepted = _ACCEPTED[str(rule)]
            values = ", ".join(f"{column} {quoted(table.at[line, column], 40)}" for column in columns)
            detail = f"{name} line {line}: {values}; {accepted}"
            yield DataIssue(RULES[str(rule)], str(rows.at[line, "patientId"]), detail)


def _read_groups(path: Path, ids: list[str], issues: list[DataIssue]) -> list[str]:
    if not table_exists(path):
        return ids  # without the table, each image counts as its own patient
    table = read_table(path, ["patientId", "groupId"])
    # Studies of unknown patients are not all of one patient.
    table = table[~table["groupId"].map(is_missing)]
    _require_plain_ids(path, "groupId", table["groupId"])
    known = table[table["patientId"].isin(ids)]
    issues += _broken(_GROUP_RULES, known, path.name, known)
    groups = dict(zip(known["patientId"], known["groupId"], strict=True))
    issues += _without("group_known", ids, table["patientId"])
    issues += _beyond("group_used", ids, table["patientId"])
    return [groups.get(key, key) for key in ids]


def _read_classes(
    path: Path | None, ids: list[str], targets: Mapping[str, int], issues: list[DataIssue]
) -> list[str] | None:
    if path is None or not table_exists(path):
        return None
    table = read_table(path, ["patientId", "class"])
    table = table[~table["class"].map(is_missing)]
    table["class"] = table["class"].map(_class_name)
    known = table[table["patientId"].isin(ids)]
    issues += _broken(_CLASS_RULES, known, path.name, known)
    classes = dict(zip(known["patientId"], known["class"], strict=True))
    issues += _without("class_known", ids, table["patientId"])
    issues += _beyond("class_used", ids, table["patientId"])
    issues += [
        DataIssue(
            RULES["class_fits_target"], key, f"{quoted(classes[key], 40)}, and Target {targets[key]}; {_CLASS_RULE}"
        )
        for key in ids
        if key in classes and (classes[key] == OPACITY) != bool(targets[key])
    ]
    return [classes.get(key, "") for key in ids]


def _class_name(cell: str) -> str:
    """Return the one of the three names that the cell spells, in any spacing and case; otherwise the cell."""
    words = " ".join(cell.split()).casefold()
    return next((name for name in (OPACITY, NOT_NORMAL, NORMAL) if name.casefold() == words), cell)


def _without(rule: str, ids: Sequence[str], named: Iterable[str]) -> Iterator[DataIssue]:
    """Return an issue for each study that a table does not name."""
    names = set(named)
    lacking = sorted(set(ids) - names)
    cause = likely_cause(lacking, names - set(ids))
    return (DataIssue(RULES[rule], key, cause(key)) for key in lacking)


def _beyond(rule: str, ids: Sequence[str], named: Iterable[str]) -> Iterator[DataIssue]:
    """Return an issue for each id that a table names but no study has."""
    return (DataIssue(RULES[rule], printable(key, 60)) for key in sorted(set(named) - set(ids)))
