"""The challenge's tables: which studies there are, of which patient, and where the boxes lie.

Boxes are x, y (top left), width, height in pixels of the original image, as the challenge has them.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pandera.pandas as pa
from pandera.errors import SchemaErrors

from pipeline.data.findings import NORMAL, NOT_NORMAL, OPACITY, RULES, Finding, unusable
from pipeline.data.suggestions import likely_cause
from pipeline.errors import UserError
from pipeline.escaping import printable, quoted
from pipeline.tables import as_number, is_missing, read_table, table_exists

IMAGES = "stage_2_train_images"
LABELS = "stage_2_train_labels.csv"
CLASSES = "stage_2_detailed_class_info.csv"
GROUPS = "patient_groups.csv"

BOX = ["x", "y", "width", "height"]

# Ids end up in file names, tables and pages; they must be plain words.
_PLAIN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


@dataclass(frozen=True)
class Annotations:
    """What the tables say.

    Attributes:
        studies: one row per study in the order of the label table:
            ``patientId`` (an image id), ``groupId`` (the patient), ``class``, ``target`` (0 or 1).
        boxes: one row per box: ``patientId, x, y, width, height``.
        findings: what is wrong with the tables.
        grouped: whether there is a table of patients.
    """

    studies: pd.DataFrame
    boxes: pd.DataFrame
    findings: list[Finding]
    grouped: bool

    @property
    def problems(self) -> dict[str, str]:
        """Study -> why it cannot be used."""
        return unusable(self.findings)

    def boxes_of(self, patient_ids: list[str]) -> list[np.ndarray]:
        """Boxes of each study, ``[N, 4]`` float64 x, y, width, height."""
        grouped = {key: rows[BOX].to_numpy(np.float64) for key, rows in self.boxes.groupby("patientId")}
        return [grouped.get(key, np.zeros((0, 4))) for key in patient_ids]


def xyxy(boxes: np.ndarray) -> np.ndarray:
    """Corners of boxes ``[N, 4]`` that are given as x, y, width, height."""
    return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1)


def read_annotations(folder: Path, labels: Path | None = None, *, with_classes: bool = True) -> Annotations:
    """Read the label, class and group tables of a data set in the challenge's layout.

    Args:
        folder: of the tables; those of classes and groups are optional.
        labels: the label table, if it has another name or place.
        with_classes: whether the class table matters to whoever asks.

    Raises:
        UserError: the folder or the label table is missing or empty, a table cannot be read, or an
            id is not a plain word. What is wrong with single studies is returned, not raised.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; run `dvc pull`, or put a data set in the RSNA layout there")
    path = labels or folder / LABELS
    table = read_table(path, ["patientId", *BOX, "Target"], numbers=[*BOX, "Target"])
    if table.empty:
        raise UserError(f"{path}: has no rows; one row per box or study is needed")
    _require_plain_ids(path, "patientId", table["patientId"])
    rows, has_box = _with_numbers(table)
    ids = rows["patientId"].drop_duplicates().to_list()
    positive = rows["Target"] == "1"
    targets = dict.fromkeys(rows["patientId"], 0) | dict.fromkeys(rows["patientId"][positive], 1)
    findings = list(_broken(_LABEL_RULES, rows, path.name, table))
    groups = _read_groups(folder / GROUPS, ids, findings)
    classes = _read_classes(folder / CLASSES if with_classes else None, ids, targets, findings)
    target = [targets[key] for key in ids]
    studies = pd.DataFrame({"patientId": ids, "groupId": groups, "class": classes, "target": target})
    boxes = rows.loc[has_box, ["patientId", *BOX]].reset_index(drop=True)
    return Annotations(studies, boxes, findings, table_exists(folder / GROUPS))


def _require_plain_ids(path: Path, column: str, ids: pd.Series) -> None:
    for line, value in ids.items():
        if not _PLAIN_ID.fullmatch(value):
            raise UserError(
                f"{path} line {line}: id {quoted(value)}: letters, digits, '.', '_' and '-' only,"
                f" at most 128, the first a letter or a digit (column {column!r})"
            )


def _with_numbers(table: pd.DataFrame) -> tuple[pd.DataFrame, np.ndarray]:
    """The label table with its boxes as numbers, and which rows have a whole box."""
    numbers = table[BOX].map(as_number).astype(np.float64)
    whole = np.isfinite(numbers.to_numpy()).all(1)
    blank = (table[BOX] == "").all(axis=1)
    made = numbers.assign(patientId=table["patientId"], Target=table["Target"].map(_target), whole=whole, blank=blank)
    return made, whole


def _target(cell: str) -> str:
    """``0`` or ``1`` where the cell can mean nothing else, such as 1.0 and TRUE; else the cell."""
    word = {"true": "1", "false": "0"}.get(cell.lower())
    return word or {0.0: "0", 1.0: "1"}.get(as_number(cell), cell)


def _rule(name: str, holds: Callable[[pd.DataFrame], pd.Series]) -> pa.Check:
    return pa.Check(holds, name=name, error=name)


def _one_value(name: str, column: str) -> pa.Check:
    return _rule(name, lambda table: table[column].groupby(table["patientId"]).transform("nunique").eq(1))


# Each rule is one of RULES, and holds for a row or not.
_LABEL_RULES = pa.DataFrameSchema(
    checks=[
        _rule("target", lambda table: table["Target"].isin(["0", "1"])),
        _rule("positive_has_box", lambda table: (table["Target"] != "1") | table["whole"]),
        _rule("negative_has_no_box", lambda table: (table["Target"] != "0") | table["blank"]),
        _rule("box_area", lambda table: ~table["whole"] | (table[["width", "height"]] > 0).all(axis=1)),
        _rule("box_once", lambda table: ~table["whole"] | ~table.duplicated(["patientId", *BOX])),
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
# The columns whose values show that a rule is broken, and what would be accepted.
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


def _broken(schema: pa.DataFrameSchema, rows: pd.DataFrame, name: str, table: pd.DataFrame) -> Iterator[Finding]:
    """Each rule that a row breaks, with the row's line in the file and what ``table``, as it was read, has there."""
    try:
        schema.validate(rows, lazy=True)
    except SchemaErrors as errors:
        failures = errors.failure_cases[["check", "index"]].drop_duplicates().sort_values("index", kind="stable")
        for rule, line in failures.itertuples(index=False):
            columns, accepted = _ACCEPTED[str(rule)]
            values = ", ".join(f"{column} {quoted(table.at[line, column], 40)}" for column in columns)
            detail = f"{name} line {line}: {values}; {accepted}"
            yield Finding(RULES[str(rule)], str(rows.at[line, "patientId"]), detail)


def _read_groups(path: Path, ids: list[str], findings: list[Finding]) -> list[str]:
    if not table_exists(path):
        return ids  # each image its own patient: all that can be known without the table
    table = read_table(path, ["patientId", "groupId"])
    # All studies of an unknown patient are not of one patient.
    table = table[~table["groupId"].map(is_missing)]
    _require_plain_ids(path, "groupId", table["groupId"])
    known = table[table["patientId"].isin(ids)]
    findings += _broken(_GROUP_RULES, known, path.name, known)
    groups = dict(zip(known["patientId"], known["groupId"], strict=True))
    findings += _without("group_known", ids, table["patientId"])
    findings += _beyond("group_used", ids, table["patientId"])
    return [groups.get(key, key) for key in ids]


def _read_classes(path: Path | None, ids: list[str], targets: Mapping[str, int], findings: list[Finding]) -> list[str]:
    if path is None or not table_exists(path):
        return [OPACITY if targets[key] else "No Lung Opacity" for key in ids]
    table = read_table(path, ["patientId", "class"])
    table = table[~table["class"].map(is_missing)]
    table["class"] = table["class"].map(_class_name)
    known = table[table["patientId"].isin(ids)]
    findings += _broken(_CLASS_RULES, known, path.name, known)
    classes = dict(zip(known["patientId"], known["class"], strict=True))
    findings += _without("class_known", ids, table["patientId"])
    findings += _beyond("class_used", ids, table["patientId"])
    findings += [
        Finding(
            RULES["class_fits_target"], key, f"{quoted(classes[key], 40)}, and Target {targets[key]}; {_CLASS_RULE}"
        )
        for key in ids
        if key in classes and (classes[key] == OPACITY) != bool(targets[key])
    ]
    return [classes.get(key, "") for key in ids]


def _class_name(cell: str) -> str:
    """One of the three names, however it is spaced and capitalised; else the cell."""
    words = " ".join(cell.split()).casefold()
    return next((name for name in (OPACITY, NOT_NORMAL, NORMAL) if name.casefold() == words), cell)


def _without(rule: str, ids: Sequence[str], named: Iterable[str]) -> Iterator[Finding]:
    """Studies that a table does not name."""
    names = set(named)
    lacking = sorted(set(ids) - names)
    cause = likely_cause(lacking, names - set(ids))
    return (Finding(RULES[rule], key, cause(key)) for key in lacking)


def _beyond(rule: str, ids: Sequence[str], named: Iterable[str]) -> Iterator[Finding]:
    """Ids that a table names and no study has."""
    return (Finding(RULES[rule], printable(key, 60)) for key in sorted(set(named) - set(ids)))
