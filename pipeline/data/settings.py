"""Settings of the preprocessing, each with its bounds; a model carries them with it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, with_config

from pipeline.bounds import CHECKED

# Below 128 px, level P6 is a single cell, on which oneDNN's bf16 gradient of the kernel is not a number.
ImageSize = Annotated[int, Field(ge=128, le=4096, multiple_of=64)]
# OpenCV converts the limit into an integer count of pixels; a larger limit has no effect, or overflows.
ClipLimit = Annotated[float, Field(ge=0, le=1000)]
Tiles = Annotated[int, Field(ge=1, le=64)]
Channel = Literal["clahe", "raw"]


def each_once(values: Sequence[str]) -> Sequence[str]:
    """Return the values; raise a `ValueError` if one occurs twice."""
    if len(set(values)) < len(values):
        raise ValueError("each channel once")
    return values


EachOnce = AfterValidator(each_once)


@with_config(CHECKED)
@dataclass(frozen=True)
class Preprocessing:
    """Settings by which a radiograph becomes the detector's input; the bounds are checked where a file is read.

    Attributes:
        image_size: side of the square, pixels.
        clip_limit: contrast limit of CLAHE; 0 turns CLAHE off.
        tile_grid_size: numbers of CLAHE tiles; columns, rows.
        channels: content of each channel: the equalised image, or the grey levels as they were.
    """

    image_size: ImageSize
    clip_limit: ClipLimit
    tile_grid_size: tuple[Tiles, Tiles]
    channels: Annotated[tuple[Channel, ...], Field(min_length=1), EachOnce]
