"""Compare a data set's tables with its files and its pixels: one set of rules for ``check`` and ``preprocess``."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from pipeline.data.annotations import IMAGES, Annotations, read_annotations
from pipeline.data.clahe import Preparation
from pipeline.data.discovery import Listing, by_study, list_folder, require_some
from pipeline.data.duplicates import clusters, same_files, similar_pairs
from pipeline.data.files_and_ids import compare_files
from pipeline.data.findings import RULES, Finding, unusable
from pipeline.data.parallel import Workers
from pipeline.data.shards import NUMBERS, ShardJob, ShardResult, Study, prepare_shards
from pipeline.errors import UserError

_STUDIES_PER_JOB = 64
# The smallest image and no CLAHE, where it only matters whether studies can be used.
SMALLEST = Preparation(64, 0, (1, 1))


@dataclass(frozen=True)
class Inventory:
    """Tables and files of a data set, matched by id.

    Attributes:
        annotations: the tables.
        files: study -> its file, of the studies that have one.
        studies: those that can be decoded, as far as is known.
        findings: what is wrong with tables and files.
    """

    annotations: Annotations
    files: dict[str, Path]
    studies: list[Study]
    findings: list[Finding]


def take_inventory(folder: Path) -> Inventory:
    """Read the tables, list the files and match the two.

    A path is never made of an id: ids are looked up among the files that are there.

    Raises:
        UserError: a table or the image folder is missing, empty or not in the challenge's layout.
    """
    annotations = read_annotations(folder)
    images = folder / IMAGES
    listing = list_folder(images) if images.is_dir() else Listing()
    require_some(images, listing)
    ids = annotations.studies["patientId"].to_list()
    found = by_study(sorted([*listing.files, *listing.misnamed]), set(ids))
    findings = [*annotations.findings, *compare_files(ids, found, listing)]
    files = {key: found[key][0] for key in ids if len(found.get(key, [])) == 1}
    problems = unusable(findings)
    usable = [key for key in ids if key not in problems]
    boxes = annotations.boxes_of(usable)
    studies = [Study(key, files[key], box) for key, box in zip(usable, boxes, strict=True)]
    return Inventory(annotations, files, studies, findings)


@dataclass(frozen=True)
class Examination:
    """All that is known of a data set once its pixels have been seen.

    Attributes:
        annotations: the tables.
        files: study -> its file.
        rows: one per decoded study: the columns of its table row, its header's tags, what it looks
            like (`describe`), and ``cluster``, the studies that must stay in one split.
        findings: all of them.
        problems: study -> why it cannot be used.
    """

    annotations: Annotations
    files: dict[str, Path]
    rows: pd.DataFrame
    findings: list[Finding]
    problems: dict[str, str]

    def summary(self) -> str:
        """What is in the data set, in a few lines."""
        studies, boxes = self.annotations.studies, self.annotations.boxes
        views = Counter(view or "unknown" for view in self.rows["view"]) if len(self.rows) else Counter[str]()
        classes = ", ".join(f"{name} {count}" for name, count in studies["class"].value_counts().items())
        return "\n".join(
            [
                f"studies: {len(studies)} of {studies['groupId'].nunique()} patients; {len(self.problems)} unusable",
                f"boxes: {len(boxes)} on {int(studies['target'].sum())} studies",
                f"classes: {classes}",
                f"views: {', '.join(f'{view} {count}' for view, count in sorted(views.items()))}",
            ]
        )


def examine(inventory: Inventory, results: Iterable[ShardResult]) -> Examination:
    """Put together what tables, files and pixels say, and compare the studies with each other."""
    results = list(results)
    findings = list(inventory.findings)
    findings += [
        Finding(RULES["readable"], key, reason) for result in results for key, reason in result.problems.items()
    ]
    studies = inventory.annotations.studies
    rows = pd.DataFrame([row for result in results for row in result.rows])
    if len(rows):
        # All may be unknown.
        rows = rows.astype(dict.fromkeys(NUMBERS, "float64"))
        rows = rows.merge(studies, on="patientId", validate="one_to_one")
        pairs = _copies(rows, findings)
        rows["cluster"] = clusters(rows["groupId"].to_list(), pairs)
        findings += [Finding(RULES["nearly_empty"], key) for key in rows["patientId"][rows["nearly_empty"]]]
        findings += [Finding(RULES["view_known"], key) for key in rows["patientId"][rows["view"] == ""]]
    return Examination(inventory.annotations, inventory.files, rows, findings, unusable(findings))


def _copies(rows: pd.DataFrame, findings: list[Finding]) -> list[tuple[int, int]]:
    """Pairs of places that show one image; notes them."""
    ids, targets = rows["patientId"].to_list(), rows["target"].to_list()
    same = same_files(rows["digest"].to_list())
    similar = [
        pair for pair in similar_pairs(rows["hash"].to_list()) if rows["digest"][pair[0]] != rows["digest"][pair[1]]
    ]
    for rule, pairs in (("same_file", same), ("similar_image", similar)):
        findings += [Finding(RULES[rule], ids[j], f"copy of {ids[i]}") for i, j in pairs]
    findings += [
        Finding(RULES["copies_disagree"], ids[j], f"{ids[i]} has Target {targets[i]}, this one {targets[j]}")
        for i, j in [*same, *similar]
        if targets[i] != targets[j]
    ]
    return [*same, *similar]


def require_few_problems(problems: Sequence[str], total: int, max_bad_fraction: float, place: str) -> None:
    """Stop when more than ``max_bad_fraction`` of ``total`` studies are unusable.

    Raises:
        UserError: how many there are, the limit, one example and where all are listed.
    """
    if len(problems) > max_bad_fraction * total:
        raise UserError(
            f"{len(problems)} of {total} studies are unusable; data.max_bad_fraction = {max_bad_fraction:g}"
            f" allows {int(max_bad_fraction * total)}; {place}; the first: {problems[0]}"
        )


def check_dataset(folder: Path, workers: Workers, study_seconds: float, rules: Preparation = SMALLEST) -> Examination:
    """Read and prepare every table, file and pixel of a data set, as ``preprocess`` does, and write nothing.

    Args:
        folder: the data set.
        workers: where studies are read.
        study_seconds: a study that takes longer is unusable.
        rules: how images are prepared.

    Raises:
        UserError: a table or the image folder is missing, empty or not in the challenge's layout.
    """
    inventory = take_inventory(folder)
    size = _STUDIES_PER_JOB
    chunks = [tuple(inventory.studies[start : start + size]) for start in range(0, len(inventory.studies), size)]
    jobs = [ShardJob(None, chunk, rules, study_seconds) for chunk in chunks]
    return examine(inventory, prepare_shards(jobs, workers, "Checking"))
