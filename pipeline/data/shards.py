"""Prepared images on disk: uint8 ``[N, H, W]`` (``[N, H, W, C]``) arrays of a few studies, and their index.

A shard is the unit of parallel work and of DVC's de-duplication: studies are dealt to shards in
the order of the label table, so studies appended to it leave the shards before them as they were.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from pipeline.data.clahe import Preparation, prepare
from pipeline.data.dicom import read_radiograph
from pipeline.data.limits import study_limits
from pipeline.data.looks import describe
from pipeline.data.manifest import MANIFEST, REBUILD, read_manifest, read_table, require_digests
from pipeline.data.parallel import Workers, map_jobs
from pipeline.data.prepared_tables import BOX_COLUMNS, parse_boxes, parse_index
from pipeline.errors import BadStudyError, UserError
from pipeline.escaping import one_line
from pipeline.files import json_text, write_atomic, write_text

# A study has them if its header does.
NUMBERS = ("age", "spacing")
_ROUNDING = 1e-6

INDEX = "index.csv"
BOXES = "boxes.csv"

Image = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Study:
    """One study to prepare: its file and its boxes, ``[N, 4]`` x, y, width, height."""

    patient_id: str
    path: Path
    boxes: np.ndarray


@dataclass(frozen=True)
class ShardJob:
    """Studies to prepare together.

    Attributes:
        target: the ``.npy`` file to write; None: the studies are only checked.
        studies: in the order of the rows.
        rules: how they are prepared.
        study_seconds: a study that takes longer ends the process; 0: no limit.
    """

    target: Path | None
    studies: tuple[Study, ...]
    rules: Preparation
    study_seconds: float = 0


@dataclass(frozen=True)
class ShardResult:
    """A row per prepared study, in the order of the images; and patientId -> reason of the others."""

    rows: list[dict[str, object]]
    problems: dict[str, str]


def write_shard(job: ShardJob) -> ShardResult:
    """Decode and prepare a shard's studies; save them as one array, and the result beside it.

    The result is written last, so that where it is, the shard is complete: see `read_result`. A job that writes
    nothing makes all that would be written, so that it meets the same problems.
    """
    images: list[Image] = []
    rows: list[dict[str, object]] = []
    problems: dict[str, str] = {}
    for study in job.studies:
        try:
            with study_limits(job.study_seconds):
                image, row = _prepare_study(study, job)
        except BadStudyError as error:
            problems[study.patient_id] = str(error)
            continue
        except OSError as error:  # it is gone, or locked: since the folder was listed
            problems[study.patient_id] = f"it cannot be read ({error.strerror})"
            continue
        rows.append(row | {"row": len(images)})
        images.append(image)
    text = json_text(asdict(ShardResult(rows, problems)))
    array = np.stack(images) if images else None
    if job.target:
        if array is not None:
            write_atomic(job.target, lambda path: np.save(path, array))
        write_text(_result_file(job.target), text)
    return _result(text)


def read_result(target: Path) -> ShardResult | None:
    """What `write_shard` returned for ``target`` before; None if it never finished."""
    try:
        return _result(_result_file(target).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError, TypeError):
        return None


def _result(text: str) -> ShardResult:
    return ShardResult(**json.loads(text))


def _result_file(target: Path) -> Path:
    return target.with_suffix(".json")


def prepare_shards(jobs: Sequence[ShardJob], workers: Workers, description: str) -> list[ShardResult]:
    """Run `write_shard` on every job whose shard is not there yet; results in the order of the jobs.

    A study on which a process dies is a problem of that study alone: the job is done again
    without it.

    Raises:
        UserError: processes die on a job of which each study alone does no harm.
    """
    results = [job.target and read_result(job.target) for job in jobs]
    open_jobs = [job for job, result in zip(jobs, results, strict=True) if result is None]
    made = iter(_run(open_jobs, workers, description))
    return [result or next(made) for result in results]


def _run(jobs: Sequence[ShardJob], workers: Workers, description: str) -> list[ShardResult]:
    results = map_jobs(write_shard, jobs, workers, description) if jobs else []
    return [
        _without_culprits(job, workers) if result is None else result for job, result in zip(jobs, results, strict=True)
    ]


def _without_culprits(job: ShardJob, workers: Workers) -> ShardResult:
    alone = [replace(job, target=None, studies=(study,)) for study in job.studies]
    survived = map_jobs(write_shard, alone, workers, "Looking for the study that ended a process")
    sound = tuple(study for study, result in zip(job.studies, survived, strict=True) if result is not None)
    again = map_jobs(write_shard, [replace(job, studies=sound)], workers, "Once more")[0]
    if again is None:
        raise UserError(
            f"{job.studies[0].path.parent}: processes die on the {len(sound)} studies from {job.studies[0].patient_id}"
            " on, though on none of them alone; is there enough memory?"
        )
    reason = f"its decoder crashed, or took longer than {job.study_seconds:g} s (data.study_seconds)"
    culprits = sorted({study.patient_id for study in job.studies} - {study.patient_id for study in sound})
    result = ShardResult(again.rows, again.problems | dict.fromkeys(culprits, reason))
    if job.target:
        write_text(_result_file(job.target), json_text(asdict(result)))
    return result


def _prepare_study(study: Study, job: ShardJob) -> tuple[Image, dict[str, object]]:
    radiograph = read_radiograph(study.path)
    height, width = radiograph.pixels.shape
    fit_boxes(study.boxes, height, width)
    image = prepare(radiograph.levels, job.rules)
    row: dict[str, object] = {"patientId": study.patient_id, "height": height, "width": width}
    row |= {name: getattr(radiograph, name) for name in ("view", "sex")}
    # JSON has no NaN.
    row |= {name: None if math.isnan(value := getattr(radiograph, name)) else value for name in NUMBERS}
    return image, row | describe(study.path, radiograph.pixels)


def fit_boxes(boxes: np.ndarray, height: int, width: int) -> np.ndarray:
    """Boxes ``[N, 4]`` x, y, width, height, cut where they reach beyond the image by no more than rounding does.

    So much is a millionth of the image's side (albumentations has the same bound).

    Raises:
        BadStudyError: a box reaches further.
    """
    size = np.array([width, height], np.float64)
    low, high = boxes[:, :2], boxes[:, :2] + boxes[:, 2:]
    dust = _ROUNDING * size
    outside = ((low < -dust) | (high > size + dust) | (low >= size) | (high <= 0)).any(1)
    for x, y, box_width, box_height in boxes[outside]:
        raise BadStudyError(
            f"box {x:.10g} {y:.10g} {box_width:.10g} {box_height:.10g} (x y width height)"
            f" reaches outside the image of {width} x {height}"
        )
    low = np.maximum(low, 0)
    over = low + boxes[:, 2:] > size
    return np.concatenate([low, np.where(over, size - low, boxes[:, 2:])], 1)


class PreparedImages(Sequence[Image]):
    """The prepared images in the order of the index; memory-mapped, so that any number fits."""

    def __init__(self, folder: Path, index: pd.DataFrame) -> None:
        self._folder = folder.resolve()  # shards are cached by path
        self._places = list(zip(index["shard"], index["row"], strict=True))

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, position: int) -> Image:  # type: ignore[override]
        """The image at ``position``, uint8 ``[H, W]`` or ``[H, W, C]``; a view into its shard."""
        shard, row = self._places[position]
        return np.asarray(_open_shard(self._folder / shard)[row])


@cache
def _open_shard(path: Path) -> Image:
    try:
        # Not np.load: it would also take an archive, or a pickle.
        shard: np.ndarray = np.lib.format.open_memmap(path, mode="r")
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path}: cannot be read ({one_line(str(error))}); {REBUILD}") from None
    if shard.dtype != np.uint8 or shard.ndim not in (3, 4):
        raise UserError(f"{path}: holds {shard.dtype} {list(shard.shape)}, must hold uint8 images; {REBUILD}")
    return shard


def require_shards(folder: Path, index: pd.DataFrame) -> None:
    """Look at all of the prepared images once, before the first is used: whole, of one shape, and as many as asked.

    Raises:
        UserError: a shard is missing, damaged, of another shape than the first, or has fewer images than
            the index says.
    """
    manifest = read_manifest(folder)
    needed = index.groupby("shard")["row"].max()
    unknown = next((name for name in needed.index if name not in manifest.files), None)
    if unknown is not None:
        raise UserError(f"{folder / INDEX}: names the shard {unknown}, which {MANIFEST} does not; {REBUILD}")
    require_digests(folder, needed.index, manifest)
    shapes = {name: _open_shard(folder.resolve() / name).shape for name in needed.index}
    for name, shape in shapes.items():
        first = next(iter(shapes))
        if shape[1:] != shapes[first][1:]:
            raise UserError(
                f"{folder / name}: has images {list(shape[1:])}, {first} {list(shapes[first][1:])}; {REBUILD}"
            )
        if needed[name] >= shape[0]:
            raise UserError(f"{folder / INDEX}: asks for row {needed[name]} of {name}, which has {shape[0]}; {REBUILD}")


def read_index(folder: Path) -> pd.DataFrame:
    """The index of prepared studies: patientId, groupId, class, target, view, sex, age, place, size.

    Raises:
        UserError: it is missing, not as it was written, or a file beside it is missing or has another size.
    """
    path = folder / INDEX
    if not path.exists():
        raise UserError(f"{path}: no such file; run `dvc repro preprocess` first")
    return parse_index(read_table(folder, INDEX, read_manifest(folder)), path)


def read_boxes(folder: Path, patient_ids: Sequence[str]) -> list[np.ndarray]:
    """Boxes of each study, ``[N, 4]`` float64 x, y, width, height in pixels of the original.

    Raises:
        UserError: they are missing, or not as they were written.
    """
    table = parse_boxes(read_table(folder, BOXES, read_manifest(folder)), folder / BOXES)
    boxes = table[BOX_COLUMNS[1:]].to_numpy(np.float64)
    places = table.groupby("patientId").indices
    return [boxes[places[key]] if key in places else np.zeros((0, 4)) for key in patient_ids]
