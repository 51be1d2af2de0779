"""Random augmentation of a training image and its boxes. The only module that imports albumentations."""

import os

# albumentations reads this on import; without it, the library asks its server for the newest version.
os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"

import albumentations as A
import numpy as np
import numpy.typing as npt

from pipeline.detection.settings import AugmentSettings

# Ranges of gamma, and of the noise's standard deviation as a share of white; pixels of the smallest box that is kept.
GAMMA, NOISE_STD, MIN_SIDE = (0.7, 1.4), (0.01, 0.04), 2
_PERCENT = 100

Image = npt.NDArray[np.uint8]
Boxes = npt.NDArray[np.float32]


class Augmenter:
    """An augmenter that changes an image in the same way whenever it gets the same seed."""

    def __init__(self, settings: AugmentSettings) -> None:
        s = settings
        self._compose = A.Compose(
            [
                A.HorizontalFlip(p=s.horizontal_flip),
                A.Affine(
                    scale=(1 - s.scale, 1 + s.scale),
                    translate_percent=(-s.translate, s.translate),
                    rotate=(-s.rotate, s.rotate),
                    # The rectangle around a rotated box's corners would be too large.
                    rotate_method="ellipse",
                    p=s.affine,
                ),
                A.RandomBrightnessContrast(s.brightness, s.contrast, p=s.brightness_contrast),
                A.RandomGamma((GAMMA[0] * _PERCENT, GAMMA[1] * _PERCENT), p=s.gamma),
                A.GaussNoise(std_range=NOISE_STD, p=s.noise),
            ],
            bbox_params=A.BboxParams(
                format="pascal_voc",
                label_fields=[],
                clip=True,
                min_visibility=s.min_visibility,
                min_width=MIN_SIDE,
                min_height=MIN_SIDE,
            ),
        )

    def __call__(self, image: Image, boxes: Boxes, seed: int) -> tuple[Image, Boxes]:
        """Change an image, uint8 ``[H, W]`` or ``[H, W, C]``, and its boxes, float32 ``[N, 4]`` xyxy pixels.

        Boxes may have further columns, such as a label, which stay as they are.

        A box is dropped if less than ``min_visibility`` of it stays inside, because its opacity is cut off.
        """
        # With one seed for all, the library gives all transforms the same random numbers: whatever is flipped would
        # also be brighter or darker, and what is not would get no noise either.
        seeds = np.random.SeedSequence(seed).generate_state(len(self._compose.transforms))
        for transform, own in zip(self._compose.transforms, seeds, strict=True):
            transform.set_random_seed(int(own))
        changed = self._compose(image=image, bboxes=boxes)
        return changed["image"], np.asarray(changed["bboxes"], np.float32).reshape(-1, boxes.shape[1])
