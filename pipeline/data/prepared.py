"""Readers of prepared data: images, index and boxes, each checked to be complete and as it was written."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from pipeline.data.manifest import MANIFEST, REBUILD, read_manifest, read_table, require_digests
from pipeline.data.prepared_tables import BOX_CLASS, BOX_COLUMNS, parse_boxes, parse_index
from pipeline.errors import UserError
from pipeline.escaping import one_line

Image = npt.NDArray[np.uint8]

INDEX = "index.csv"
BOXES = "boxes.csv"


class PreparedImages(Sequence[Image]):
    """The prepared images in the order of the index; memory-mapped, so that any number fits in memory."""

    def __init__(self, folder: Path, index: pd.DataFrame) -> None:
        self._folder = folder.resolve()  # shards are cached by path
        self._places = list(zip(index["shard"], index["row"], strict=True))

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, position: int) -> Image:  # type: ignore[override]
        """Return the image at ``position``, uint8 ``[H, W]`` or ``[H, W, C]``; a view into its shard."""
        shard, row = self._places[position]
        return np.asarray(_open_shard(self._folder / shard)[row])


@cache
def _open_shard(path: Path) -> Image:
    try:
        # Not np.load, which would also accept an archive or a pickle.
        shard: np.ndarray = np.lib.format.open_memmap(path, mode="r")
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path}: cannot be read ({one_line(str(error))}); {REBUILD}") from None
    if shard.dtype != np.uint8 or shard.ndim not in (3, 4):
        raise UserError(f"{path}: holds {shard.dtype} {list(shard.shape)}, must hold uint8 images; {REBUILD}")
    return shard


def require_shards(folder: Path, index: pd.DataFrame) -> None:
    """Check all shards before the first image is used: whole, of one shape, and with as many images as indexed.

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
            raise UserError(
                f"{folder / INDEX}: names row {needed[name]} of {name}, which has {shape[0]} rows; {REBUILD}"
            )


def read_index(folder: Path) -> pd.DataFrame:
    """Read the index of prepared studies: patientId, groupId, class, target, view, sex, age, place, size.

    Raises:
        UserError: the index is missing or not as it was written, or a file beside it is missing or has another size.
    """
    path = folder / INDEX
    if not path.exists():
        raise UserError(f"{path}: no such file; run `dvc repro preprocess` first")
    return parse_index(read_table(folder, INDEX, read_manifest(folder)), path)


def read_boxes(
    folder: Path, patient_ids: Sequence[str], classes: Sequence[str]
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Read the boxes of each study, ``[N, 4]`` float64 x, y, width, height in pixels of the original, and their labels.

    A box's label ``[N]`` int64 is the position of its class in ``classes``.

    Raises:
        UserError: the boxes are missing, not as they were written, or of other classes.
    """
    path = folder / BOXES
    table = parse_boxes(read_table(folder, BOXES, read_manifest(folder)), path)
    boxes = table[BOX_COLUMNS[1:]].to_numpy(np.float64)
    labels = np.zeros(len(table), np.int64)
    if (BOX_CLASS in table) != (len(classes) > 1):
        raise UserError(f"{path}: prepared for other classes than `classes` names; {REBUILD}")
    if BOX_CLASS in table:
        other = ~table[BOX_CLASS].isin(list(classes))
        if other.any():
            name = one_line(str(table[BOX_CLASS][other].iloc[0]))
            raise UserError(f"{path}: has boxes of class {name}, which `classes` does not name; {REBUILD}")
        labels = np.array([list(classes).index(name) for name in table[BOX_CLASS]], np.int64)
    rows_of = table.groupby("patientId").indices
    none = np.zeros(0, np.int64)
    rows = [rows_of.get(key, none) for key in patient_ids]
    return [boxes[one] for one in rows], [labels[one] for one in rows]
