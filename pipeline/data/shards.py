"""Prepared images on disk: uint8 ``[N, H, W]`` (``[N, H, W, C]``) arrays of a few studies, and their index.

A shard is the unit of parallel work and of DVC's de-duplication: studies are dealt to shards in
the order of the label table, so studies appended to it leave the shards before them as they were.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from pipeline.data.clahe import Preparation, prepare
from pipeline.data.dicom import read_radiograph
from pipeline.errors import BadStudyError, UserError

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
    """A shard to write; without ``target`` the studies are only checked."""

    target: Path | None
    studies: tuple[Study, ...]
    rules: Preparation


@dataclass(frozen=True)
class ShardResult:
    """Index rows of the prepared studies, and patientId -> reason of the others."""

    rows: list[dict[str, object]]
    problems: dict[str, str]


def write_shard(job: ShardJob) -> ShardResult:
    """Decode and prepare a shard's studies and save them as one array."""
    images: list[Image] = []
    rows: list[dict[str, object]] = []
    problems: dict[str, str] = {}
    for study in job.studies:
        try:
            image, row = _prepare_study(study, job)
        except BadStudyError as error:
            problems[study.patient_id] = str(error)
            continue
        rows.append(row | {"shard": job.target.name if job.target else "", "row": len(images)})
        images.append(image)
    if job.target and images:
        np.save(job.target, np.stack(images))
    return ShardResult(rows, problems)


def _prepare_study(study: Study, job: ShardJob) -> tuple[Image, dict[str, object]]:
    radiograph = read_radiograph(study.path)
    height, width = radiograph.pixels.shape
    _require_inside(study.boxes, height, width)
    image = prepare(radiograph.pixels, job.rules)
    row = {"patientId": study.patient_id, "height": height, "width": width}
    return image, row | {"view": radiograph.view, "sex": radiograph.sex, "age": radiograph.age}


def _require_inside(boxes: np.ndarray, height: int, width: int) -> None:
    for x, y, box_width, box_height in boxes:
        if x < 0 or y < 0 or x + box_width > width or y + box_height > height:
            raise BadStudyError(
                f"box {x:g} {y:g} {box_width:g} {box_height:g} (x y width height)"
                f" reaches outside the image of {width} x {height}"
            )


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
def _open_shard(path: Path) -> np.ndarray:
    try:
        # allow_pickle stays False: an .npy file may otherwise carry code.
        shard: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path}: cannot be read ({error}); run `dvc repro` to rebuild it") from None
    return shard


def read_index(folder: Path) -> pd.DataFrame:
    """The index of prepared studies: patientId, groupId, class, target, view, sex, age, place, size."""
    path = folder / INDEX
    if not path.exists():
        raise UserError(f"{path}: no such file; run `dvc repro preprocess` first")
    text = dict.fromkeys(("patientId", "groupId", "class", "view", "sex", "shard"), str)
    # Ids and words stay as written: 'NA' is not a missing value, '007' is not 7.
    return pd.read_csv(path, dtype=text, keep_default_na=False, na_values={"age": [""]})


def read_boxes(folder: Path, patient_ids: Sequence[str]) -> list[np.ndarray]:
    """Boxes of each study, ``[N, 4]`` float64 x, y, width, height in pixels of the original."""
    table = pd.read_csv(folder / BOXES, dtype={"patientId": str}, keep_default_na=False)
    columns = ["x", "y", "width", "height"]
    grouped = {key: rows[columns].to_numpy(np.float64) for key, rows in table.groupby("patientId")}
    return [grouped.get(key, np.zeros((0, 4))) for key in patient_ids]
