"""Rules by which a radiograph becomes the input of a detector; a model carries them with it."""

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field, with_config

from pipeline.bounds import CHECKED, Channel, ClipLimit, EachOnce, ImageSize, Tiles


@with_config(CHECKED)
@dataclass(frozen=True)
class Preparation:
    """Rules by which a radiograph becomes the detector's input; stored with the model whose input they define.

    Attributes:
        image_size: side of the square, pixels.
        clip_limit: contrast limit of CLAHE; 0 turns CLAHE off.
        tile_grid_size: numbers of CLAHE tiles; columns, rows.
        channels: content of each channel: the equalised image, or the grey levels as they were.
    """

    image_size: ImageSize
    clip_limit: ClipLimit
    tile_grid_size: tuple[Tiles, Tiles]
    channels: Annotated[tuple[Channel, ...], Field(min_length=1), EachOnce] = ("clahe",)
