"""Prepared images on disk: uint8 ``[N, H, W]`` (or ``[N, H, W, C]``) arrays of a few studies, and their index.

A shard is the unit of parallel work and of DVC's de-duplication: studies are put into shards in
the order of the label table, so studies that are appended to it leave the earlier shards unchanged.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pipeline.data.image_statistics import describe
from pipeline.data.parallel import Workers, map_jobs
from pipeline.data.preprocessing import preprocess
from pipeline.data.settings import Preprocessing
from pipeline.dicom.limits import study_limits
from pipeline.dicom.radiograph import read_radiograph
from pipeline.errors import BadStudyError, UserError
from pipeline.files import json_text, write_atomic, write_text

# A study has these numbers only if its header does.
NUMBERS = ("age", "spacing")
_ROUNDING = 1e-6


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
        target: the ``.npy`` file to write; None to only check the studies.
        studies: in the order of the rows.
        settings: the settings of their preparation.
        study_seconds: a study that takes longer ends the process; 0: no limit.
    """

    target: Path | None
    studies: tuple[Study, ...]
    settings: Preprocessing
    study_seconds: float = 0


@dataclass(frozen=True)
class ShardResult:
    """A row per prepared study, in the order of the images; and patientId -> reason, for the other studies."""

    rows: list[dict[str, object]]
    problems: dict[str, str]


def write_shard(job: ShardJob) -> ShardResult:
    """Decode and prepare a shard's studies; save them as one array, and the result beside it.

    The result is written last: where it exists, the shard is complete (see `read_result`). A job without a target
    still makes everything that would be written, so that it meets the same problems.
    """
    images: list[Image] = []
    rows: list[dict[str, object]] = []
    problems: dict[str, str] = {}
    for study in job.studies:
        try:
            with study_limits(job.study_seconds):
                image, row = _preprocess_study(study, job)
        except BadStudyError as error:
            problems[study.patient_id] = str(error)
            continue
        except OSError as error:  # removed or locked after the folder was listed
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
    """Read the result that `write_shard` saved for ``target``; return None if it never finished."""
    try:
        return _result(_result_file(target).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError, TypeError):
        return None


def _result(text: str) -> ShardResult:
    return ShardResult(**json.loads(text))


def _result_file(target: Path) -> Path:
    return target.with_suffix(".json")


def preprocess_shards(jobs: Sequence[ShardJob], workers: Workers, description: str) -> list[ShardResult]:
    """Run `write_shard` on every job whose shard does not exist yet; return results in the order of the jobs.

    If a process dies on a study, only that study is reported as a problem: the job runs again
    without it.

    Raises:
        UserError: processes die on a job, although none of its remaining studies ends a process alone.
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
            f"{job.studies[0].path.parent}: processes die while they read the {len(sound)} studies from"
            f" {job.studies[0].patient_id} on, but not with one of them alone; is there enough memory?"
        )
    reason = f"its decoder crashed, or took longer than {job.study_seconds:g} s (data.study_seconds)"
    culprits = sorted({study.patient_id for study in job.studies} - {study.patient_id for study in sound})
    result = ShardResult(again.rows, again.problems | dict.fromkeys(culprits, reason))
    if job.target:
        write_text(_result_file(job.target), json_text(asdict(result)))
    return result


def _preprocess_study(study: Study, job: ShardJob) -> tuple[Image, dict[str, object]]:
    radiograph = read_radiograph(study.path)
    height, width = radiograph.pixels.shape
    fit_boxes(study.boxes, height, width)
    image = preprocess(radiograph.levels, job.settings)
    row: dict[str, object] = {"patientId": study.patient_id, "height": height, "width": width}
    row |= {name: getattr(radiograph, name) for name in ("view", "sex")}
    # JSON has no NaN.
    row |= {name: None if math.isnan(value := getattr(radiograph, name)) else value for name in NUMBERS}
    return image, row | describe(study.path, radiograph.pixels)


def fit_boxes(boxes: np.ndarray, height: int, width: int) -> np.ndarray:
    """Cut boxes ``[N, 4]`` x, y, width, height at the image's edges if they exceed them by no more than rounding.

    The bound is a millionth of the image's side (albumentations has the same bound).

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
