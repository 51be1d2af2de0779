"""The challenge's tables: which studies there are, of which patient, and where the boxes lie.

Boxes are x, y (top left), width, height in pixels of the original image, as the challenge has them.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pandera.pandas as pa
from pandera.errors import SchemaErrors

from pipeline.data.findings import RULES, Finding, unusable
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


def read_annotations(folder: Path) -> Annotations:
    """Read the label, class and group tables of a data set in the challenge's layout.

    Raises:
        UserError: the folder or the label table is missing or empty, a column is missing, or an
            id is not a plain word. What is wrong with single studies is returned, not raised.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; run `dvc pull`, or put a data set in the RSNA layout there")
    labels = read_table(folder / LABELS, ["patientId", *BOX, "Target"])
    if labels.empty:
        raise UserError(f"{folder / LABELS}: has no rows; one row per box or study is needed")
    _require_plain_ids(folder / LABELS, labels["patientId"])
    labels, has_box = _with_numbers(labels)
    ids = pd.Series(labels["patientId"].drop_duplicates().to_list())
    positive = labels["Target"] == "1"
    targets = dict.fromkeys(labels["patientId"], 0) | dict.fromkeys(labels["patientId"][positive], 1)
    findings = list(_broken(_LABEL_RULES, labels, LABELS))
    groups = _read_groups(folder / GROUPS, ids, findings)
    classes = _read_classes(folder / CLASSES, ids, targets, findings)
    studies = pd.DataFrame({"patientId": ids, "groupId": groups, "class": classes, "target": ids.map(targets)})
    boxes = labels.loc[has_box, ["patientId", *BOX]].reset_index(drop=True)
    return Annotations(studies, boxes, findings, (folder / GROUPS).exists())


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


def _with_numbers(labels: pd.DataFrame) -> tuple[pd.DataFrame, np.ndarray]:
    """The label table with its boxes as numbers, and which rows have a whole box."""
    numbers = labels[BOX].apply(pd.to_numeric, errors="coerce").astype(np.float64)
    whole = np.asarray(np.isfinite(numbers.to_numpy()).all(1))
    blank = (labels[BOX] == "").all(axis=1)
    return labels.drop(columns=BOX).join(numbers).assign(whole=whole, blank=blank), whole


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


def _broken(schema: pa.DataFrameSchema, table: pd.DataFrame, name: str) -> Iterator[Finding]:
    """Each rule that a row breaks, with the row's line in the file."""
    try:
        schema.validate(table, lazy=True)
    except SchemaErrors as errors:
        failures = errors.failure_cases[["check", "index"]].drop_duplicates().sort_values("index", kind="stable")
        for rule, place in failures.itertuples(index=False):
            yield Finding(RULES[str(rule)], str(table["patientId"].iloc[int(place)]), f"{name} line {int(place) + 2}")


def _read_groups(path: Path, ids: pd.Series, findings: list[Finding]) -> list[str]:
    if not path.exists():
        return ids.to_list()  # each image its own patient: all that can be known without the table
    table = read_table(path, ["patientId", "groupId"])
    _require_plain_ids(path, table["groupId"])
    findings += _broken(_GROUP_RULES, table, GROUPS)
    groups = dict(zip(table["patientId"], table["groupId"], strict=True))
    findings += _about("group_known", (key for key in ids if key not in groups))
    findings += _about("group_used", groups.keys() - set(ids))
    return [groups.get(key, key) for key in ids]


def _read_classes(path: Path, ids: pd.Series, targets: Mapping[str, int], findings: list[Finding]) -> list[str]:
    if not path.exists():
        return [OPACITY if targets[key] else "No Lung Opacity" for key in ids]
    table = read_table(path, ["patientId", "class"])
    findings += _broken(_CLASS_RULES, table, CLASSES)
    classes = dict(zip(table["patientId"], table["class"], strict=True))
    findings += _about("class_known", (key for key in ids if key not in classes))
    findings += [
        Finding(RULES["class_fits_target"], key, f"{classes[key][:40]!r}, and Target {targets[key]}")
        for key in ids
        if key in classes and (classes[key] == OPACITY) != bool(targets[key])
    ]
    return [classes.get(key, "") for key in ids]


def _about(rule: str, studies: Iterable[str]) -> list[Finding]:
    return [Finding(RULES[rule], key) for key in sorted(studies)]
