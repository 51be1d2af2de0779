"""Compare a data set's tables with its files and its pixels, before anything is made of them."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from pipeline.data.annotations import IMAGES, LABELS, Annotations, read_annotations
from pipeline.data.clahe import Preparation
from pipeline.data.parallel import map_parallel
from pipeline.data.shards import ShardJob, Study, write_shard
from pipeline.errors import UserError

_STUDIES_PER_JOB = 64


@dataclass(frozen=True)
class Inventory:
    """Tables and files of a data set, matched by id; ``problems`` gives a reason per study."""

    annotations: Annotations
    studies: list[Study]
    problems: dict[str, str]


def take_inventory(folder: Path) -> Inventory:
    """Read the tables, list the files and match the two.

    A path is never made of an id: ids are looked up among the files that are there.

    Raises:
        UserError: a table or the image folder is missing, empty or not in the challenge's layout.
    """
    annotations = read_annotations(folder)
    images = folder / IMAGES
    files = {path.stem: path for path in sorted(images.glob("*.dcm"))} if images.is_dir() else {}
    if not files:
        raise UserError(f"{images}: no .dcm files; the challenge's images belong there")
    ids = annotations.studies["patientId"].to_list()
    problems = dict(annotations.problems)
    for key in ids:
        if key not in files:
            problems.setdefault(key, f"no image: {IMAGES} has no file of this name")
    for key in files.keys() - set(ids):
        problems[key] = f"no label: {LABELS} has no row for this image"
    usable = [key for key in ids if key not in problems]
    boxes = annotations.boxes_of(usable)
    studies = [Study(key, files[key], box) for key, box in zip(usable, boxes, strict=True)]
    return Inventory(annotations, studies, problems)


def require_few_problems(problems: Iterable[str], total: int, max_bad_fraction: float, place: str) -> None:
    """Stop when more than ``max_bad_fraction`` of ``total`` studies are unusable.

    Raises:
        UserError: how many there are, the limit, one example and where all are listed.
    """
    reasons = list(problems)
    if len(reasons) > max_bad_fraction * total:
        raise UserError(
            f"{len(reasons)} of {total} studies are unusable; data.max_bad_fraction = {max_bad_fraction:g}"
            f" allows {int(max_bad_fraction * total)}; {place}; the first: {reasons[0]}"
        )


@dataclass(frozen=True)
class CheckReport:
    """What a check found: a summary in a few lines, and a reason per unusable study."""

    summary: str
    problems: dict[str, str]


def check_dataset(folder: Path, workers: int) -> CheckReport:
    """Read every table, file and pixel of a data set, as ``preprocess`` would, and write nothing.

    Raises:
        UserError: a table or the image folder is missing, empty or not in the challenge's layout.
    """
    inventory = take_inventory(folder)
    size = _STUDIES_PER_JOB
    chunks = [tuple(inventory.studies[start : start + size]) for start in range(0, len(inventory.studies), size)]
    # The smallest image and no CLAHE: only whether a study can be decoded matters here.
    results = map_parallel(
        write_shard, [ShardJob(None, chunk, Preparation(64, 0, (1, 1))) for chunk in chunks], workers, "Checking"
    )
    problems = dict(inventory.problems)
    for result in results:
        problems |= result.problems
    views = Counter(str(row["view"]) or "unknown" for result in results for row in result.rows)
    return CheckReport(_summary(inventory, views, len(problems)), problems)


def _summary(inventory: Inventory, views: Counter[str], problems: int) -> str:
    studies, boxes = inventory.annotations.studies, inventory.annotations.boxes
    classes = ", ".join(f"{name} {count}" for name, count in studies["class"].value_counts().items())
    return "\n".join(
        [
            f"studies: {len(studies)} of {studies['groupId'].nunique()} patients; {problems} unusable",
            f"boxes: {len(boxes)} on {int(studies['target'].sum())} studies",
            f"classes: {classes}",
            f"views: {', '.join(f'{view} {count}' for view, count in sorted(views.items()))}",
        ]
    )
