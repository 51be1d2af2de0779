"""Random changes of a training image and its boxes. The only module that knows albumentations."""

import os
from dataclasses import dataclass

# Read on import: without it the library asks its server for the newest version.
os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"

import albumentations as A
import numpy as np
import numpy.typing as npt

Image = npt.NDArray[np.uint8]
Boxes = npt.NDArray[np.float32]


@dataclass(frozen=True)
class AugmentSettings:
    """Probabilities and largest amounts; the names are those of the ``augment`` section."""

    horizontal_flip: float
    affine: float
    scale: float
    translate: float
    rotate: float
    brightness_contrast: float
    brightness: float
    contrast: float
    gamma: float
    noise: float
    min_visibility: float


class Augmenter:
    """Changes an image the same way whenever it is given the same seed."""

    def __init__(self, settings: AugmentSettings) -> None:
        s = settings
        self._compose = A.Compose(
            [
                A.HorizontalFlip(p=s.horizontal_flip),
                A.Affine(
                    scale=(1 - s.scale, 1 + s.scale),
                    translate_percent=(-s.translate, s.translate),
                    rotate=(-s.rotate, s.rotate),
                    # A rotated box's own corners would give a box that is too large.
                    rotate_method="ellipse",
                    p=s.affine,
                ),
                A.RandomBrightnessContrast(s.brightness, s.contrast, p=s.brightness_contrast),
                A.RandomGamma((70, 140), p=s.gamma),
                A.GaussNoise(std_range=(0.01, 0.04), p=s.noise),
            ],
            bbox_params=A.BboxParams(
                format="pascal_voc",
                label_fields=[],
                clip=True,
                min_visibility=s.min_visibility,
                min_width=2,
                min_height=2,
            ),
        )

    def __call__(self, image: Image, boxes: Boxes, seed: int) -> tuple[Image, Boxes]:
        """Change uint8 ``[H, W]`` or ``[H, W, C]`` and its boxes, float32 ``[N, 4]`` xyxy pixels.

        A box of which less than ``min_visibility`` stays inside is dropped with its opacity cut.
        """
        self._compose.set_random_seed(seed)
        changed = self._compose(image=image, bboxes=boxes)
        return changed["image"], np.asarray(changed["bboxes"], np.float32).reshape(-1, 4)
