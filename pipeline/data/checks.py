"""Comparison of a data set's tables with its files and pixels: one set of rules for ``check`` and ``preprocess``."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from pipeline.data.annotations import IMAGES, Annotations, read_annotations
from pipeline.data.box_classes import LabelRules
from pipeline.data.data_issues import RULES, DataIssue, unusable
from pipeline.data.discovery import Listing, by_study, list_folder, require_some
from pipeline.data.duplicates import clusters, same_files, similar_pairs
from pipeline.data.files_and_ids import compare_files
from pipeline.data.frontal import choose_images
from pipeline.data.given_splits import with_given_splits
from pipeline.data.metadata import fill_in, read_metadata, unused
from pipeline.data.parallel import Workers
from pipeline.data.settings import Preprocessing
from pipeline.data.shards import NUMBERS, ShardJob, ShardResult, Study, preprocess_shards
from pipeline.dicom.views import LATERAL
from pipeline.errors import UserError
from pipeline.escaping import printable

_STUDIES_PER_JOB = 64
# The smallest image and no CLAHE, for a check that only asks whether studies can be used.
SMALLEST = Preprocessing(64, 0, (1, 1), ("clahe",))


@dataclass(frozen=True)
class Inventory:
    """Tables and files of a data set, matched by id.

    Attributes:
        annotations: the tables.
        files: study -> its image; see `choose_images`.
        studies: the studies to decode: those in which no error is known yet.
        metadata: facts about studies whose files lack them; see `read_metadata`.
        issues: the problems of tables and files.
    """

    annotations: Annotations
    files: dict[str, Path]
    studies: list[Study]
    metadata: pd.DataFrame
    issues: list[DataIssue]


def take_inventory(folder: Path, rules: LabelRules | None = None, workers: Workers | None = None) -> Inventory:
    """Read the tables, list the files and match the two.

    No path is ever built from an id: ids are looked up among the files that exist. ``rules`` as in `read_annotations`;
    the headers of studies with several files are read by ``workers``.

    Raises:
        UserError: a table or the image folder is missing, empty or not in the challenge's layout.
    """
    annotations = with_given_splits(read_annotations(folder, rules=rules), folder)
    images = folder / IMAGES
    listing = list_folder(images) if images.is_dir() else Listing()
    require_some(images, listing)
    ids = annotations.studies["patientId"].to_list()
    files_of = by_study(listing.images(), set(ids), images)
    chosen = choose_images(files_of, ids, workers or Workers())
    metadata = read_metadata(folder)
    issues = [*annotations.issues, *unused(annotations, metadata), *compare_files(ids, files_of, listing)]
    issues += chosen.issues
    problems = unusable(issues)
    usable = [key for key in ids if key not in problems]
    boxes = annotations.boxes_of(usable)
    studies = [Study(key, chosen.files[key], box) for key, box in zip(usable, boxes, strict=True)]
    return Inventory(annotations, chosen.files, studies, metadata, issues)


@dataclass(frozen=True)
class Examination:
    """All that is known about a data set after its pixels are read.

    Attributes:
        annotations: the tables.
        files: study -> its file.
        rows: one per study to use: the columns of its table row, its header's tags, the statistics
            of its image (`describe`), and ``cluster``: studies of one cluster must stay in one split.
        issues: the problems of tables, files and pixels.
        problems: study -> the reason why it cannot be used.
    """

    annotations: Annotations
    files: dict[str, Path]
    rows: pd.DataFrame
    issues: list[DataIssue]
    problems: dict[str, str]

    def summary(self) -> str:
        """Describe the content of the data set in a few lines."""
        studies, boxes = self.annotations.studies, self.annotations.boxes
        views = Counter(view or "unknown" for view in self.rows["view"]) if len(self.rows) else Counter[str]()
        classes = ", ".join(f"{name} {count}" for name, count in studies["class"].value_counts().items())
        return "\n".join(
            [
                f"studies: {len(studies)} of {studies['groupId'].nunique()} patients; {len(self.problems)} unusable"
                + (f"; {count} lateral, set aside" if (count := self.lateral) else ""),
                f"boxes: {len(boxes)} on {int(studies['target'].sum())} studies{self._by_class()}",
                f"classes: {classes}",
                f"views: {', '.join(f'{view} {count}' for view, count in sorted(views.items()))}",
            ]
        )

    @property
    def lateral(self) -> int:
        """Return the number of studies that were set aside because their image is a lateral view."""
        return sum(issue.rule.name == "lateral" for issue in self.issues)

    def _by_class(self) -> str:
        """Return the number of boxes of each class, if there are several, and of those that were left out."""
        names, counts = self.annotations.names, self.annotations.boxes["label"].value_counts()
        each = ", ".join(f"{name} {counts.get(label, 0)}" for label, name in enumerate(names)) if len(names) > 1 else ""
        dropped = ", ".join(f"{printable(name, 40)} {count}" for name, count in self.annotations.dropped.items())
        return (f": {each}" if each else "") + (f"; left out (data.other_classes): {dropped}" if dropped else "")


def examine(inventory: Inventory, results: Iterable[ShardResult], *, keep_lateral: bool = False) -> Examination:
    """Combine the findings from tables, files and pixels, and compare the studies with each other.

    Studies whose only image is a lateral view are set aside, unless ``keep_lateral``.
    """
    results = list(results)
    issues = list(inventory.issues)
    issues += [
        DataIssue(RULES["readable"], key, reason) for result in results for key, reason in result.problems.items()
    ]
    studies = inventory.annotations.studies
    rows = pd.DataFrame([row for result in results for row in result.rows])
    if len(rows):
        # All values of a column may be None.
        rows = fill_in(rows.astype(dict.fromkeys(NUMBERS, "float64")), inventory.metadata)
        rows = rows.merge(studies, on="patientId", validate="one_to_one")
        if not keep_lateral:
            rows = _without_lateral(rows, issues)
        pairs = _copies(rows, issues)
        rows["cluster"] = clusters(rows["groupId"].to_list(), pairs)
        issues += [DataIssue(RULES["nearly_empty"], key) for key in rows["patientId"][rows["nearly_empty"]]]
        issues += [DataIssue(RULES["view_known"], key) for key in rows["patientId"][rows["view"] == ""]]
    return Examination(inventory.annotations, inventory.files, rows, issues, unusable(issues))


def _without_lateral(rows: pd.DataFrame, issues: list[DataIssue]) -> pd.DataFrame:
    """Return the rows whose view is not lateral, and add the others to ``issues``."""
    lateral = rows["view"].isin(LATERAL)
    issues += [DataIssue(RULES["lateral"], key) for key in rows["patientId"][lateral]]
    return rows[~lateral].reset_index(drop=True)


def _copies(rows: pd.DataFrame, issues: list[DataIssue]) -> list[tuple[int, int]]:
    """Return the pairs of rows that show the same image, and add them to ``issues``."""
    ids, targets = rows["patientId"].to_list(), rows["target"].to_list()
    same = same_files(rows["digest"].to_list())
    similar = [
        pair for pair in similar_pairs(rows["hash"].to_list()) if rows["digest"][pair[0]] != rows["digest"][pair[1]]
    ]
    for rule, pairs in (("same_file", same), ("similar_image", similar)):
        issues += [DataIssue(RULES[rule], ids[j], f"copy of {ids[i]}") for i, j in pairs]
    issues += [
        DataIssue(RULES["copies_disagree"], ids[j], f"{ids[i]} has Target {targets[i]}, this one {targets[j]}")
        for i, j in [*same, *similar]
        if targets[i] != targets[j]
    ]
    return [*same, *similar]


def require_few_problems(problems: Sequence[str], total: int, max_bad_fraction: float, listed: str) -> None:
    """Stop when more than ``max_bad_fraction`` of ``total`` studies are unusable.

    Raises:
        UserError: the message gives their number, the limit, one example and the place where all are listed.
    """
    if len(problems) > max_bad_fraction * total:
        raise UserError(
            f"{len(problems)} of {total} studies are unusable; data.max_bad_fraction = {max_bad_fraction:g}"
            f" allows {int(max_bad_fraction * total)}; {listed}; the first: {problems[0]}"
        )


def check_dataset(
    folder: Path,
    workers: Workers,
    study_seconds: float,
    settings: Preprocessing = SMALLEST,
    rules: LabelRules | None = None,
    *,
    keep_lateral: bool = False,
) -> Examination:
    """Read every table and prepare every study of a data set, as ``preprocess`` does, but write nothing.

    Args:
        folder: the data set.
        workers: where studies are read.
        study_seconds: a study that takes longer is unusable.
        settings: how images are prepared.
        rules: the classes of boxes; None: each name in the label table is a class.
        keep_lateral: whether studies whose only image is a lateral view are used.

    Raises:
        UserError: a table or the image folder is missing, empty or not in the challenge's layout.
    """
    inventory = take_inventory(folder, rules, workers)
    size = _STUDIES_PER_JOB
    chunks = [tuple(inventory.studies[start : start + size]) for start in range(0, len(inventory.studies), size)]
    jobs = [ShardJob(None, chunk, settings, study_seconds) for chunk in chunks]
    return examine(inventory, preprocess_shards(jobs, workers, "Checking"), keep_lateral=keep_lateral)
