"""Sections of the params that the network's losses and augmentation take as they are, each with its bounds."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from pipeline.bounds import CHECKED, Fraction, NotNegative, OpenFraction, Positive


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class AugmentSettings:
    """Random changes of training images: probabilities and largest amounts."""

    horizontal_flip: Fraction
    affine: Fraction
    scale: Annotated[float, Field(ge=0, lt=1)]
    translate: Annotated[float, Field(ge=0, lt=1)]
    rotate: Annotated[float, Field(ge=0, le=45)]
    brightness_contrast: Fraction
    brightness: Fraction
    contrast: Fraction
    gamma: Fraction
    noise: Fraction
    min_visibility: Fraction


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class LossSettings:
    """Matching of anchors to boxes, and the two losses that `DetectionLoss` computes."""

    classification: Literal[
        "focal",
        "cross_entropy",
        "balanced_cross_entropy",
        "weighted_cross_entropy",
        "frequency_balanced_cross_entropy",
    ]
    alpha: Fraction
    gamma: NotNegative
    beta: Positive
    normalizer: Literal["per_image", "batch", "ema"]
    box: Literal["smooth_l1", "l1", "giou", "ciou"]
    box_beta: Positive
    box_weight: Positive
    fg_iou_thresh: OpenFraction
    bg_iou_thresh: OpenFraction
    low_quality_matches: bool
    sampling: Literal["all", "ohem"]
    ohem_ratio: Positive

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.bg_iou_thresh > self.fg_iou_thresh:
            raise ValueError(
                f"bg_iou_thresh must not exceed fg_iou_thresh, {self.bg_iou_thresh:g} > {self.fg_iou_thresh:g}"
            )
        return self
