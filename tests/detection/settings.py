"""Settings from which tests derive their own with `dataclasses.replace`."""

from pipeline.detection.settings import AugmentSettings, LossSettings

LOSS = LossSettings(
    classification="focal", alpha=0.25, gamma=2.0, beta=1.0, normalizer="batch",
    box="smooth_l1", box_beta=1 / 9, box_weight=1.0, fg_iou_thresh=0.5, bg_iou_thresh=0.4, low_quality_matches=True,
    sampling="all", ohem_ratio=3.0,
)  # fmt: skip
# Every kind of change applies to some images.
AUGMENT = AugmentSettings(
    horizontal_flip=0.5, affine=1, scale=0.2, translate=0.1, rotate=5, brightness_contrast=1, brightness=0.2,
    contrast=0.2, gamma=1, noise=1, min_visibility=0.3,
)  # fmt: skip
