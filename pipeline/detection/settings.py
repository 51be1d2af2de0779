"""Settings of the network, its losses, augmentation and post-processing, each with its bounds; without torch."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from pipeline.bounds import CHECKED, Count, Fraction, NotNegative, OpenFraction, Positive

# Within these bounds every anchor has an area after its corners are rounded to whole pixels.
SCALE_BOUNDS, RATIO_BOUNDS = (0.25, 64.0), (0.1, 10.0)
AnchorScale = Annotated[float, Field(ge=SCALE_BOUNDS[0], le=SCALE_BOUNDS[1])]
AnchorRatio = Annotated[float, Field(ge=RATIO_BOUNDS[0], le=RATIO_BOUNDS[1])]
MAX_SHAPES = 64
MOST_DETECTIONS = 1000  # of an image
BACKBONE = r"[A-Za-z0-9_]{1,80}(\.[A-Za-z0-9_]{1,80})?"
BoxShrink = Annotated[float, Field(ge=0, lt=1)]
# A smaller sigma can be 0 in float32; the score of boxes that do not overlap is then 0 / 0.
SoftNmsSigma = Annotated[float, Field(ge=0.001, le=1000)]


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class NetworkSettings:
    """The part of the ``model`` section that a trained model keeps as it is.

    Attributes:
        fpn_channels: channels of every pyramid level.
        p6_source: input of level P6, ``p5`` or ``c5`` (the backbone's last features).
        head_convs: number of 3 x 3 convolutions before a subnet's last one.
        head_norm: norm after each of these, ``group`` or ``none``.
        prior_probability: probability that an untrained model gives every anchor.
    """

    fpn_channels: Annotated[int, Field(ge=32, le=1024, multiple_of=32)]
    p6_source: Literal["p5", "c5"]
    head_convs: Annotated[int, Field(ge=1, le=8)]
    head_norm: Literal["none", "group"]
    prior_probability: OpenFraction


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class Architecture(NetworkSettings):
    """Everything that is needed to rebuild a model; it is stored beside the weights.

    Attributes:
        backbone: a timm model; only a plain name, because timm also accepts a model's address and downloads it.
        norm: norm of the backbone, ``group`` or ``frozen_batch``.
        anchor_shapes: scale and ratio of each anchor of a cell.
        num_classes: number of foreground classes.
        in_channels: channels of the images.
        mask_head: whether an auxiliary head draws masks on P3.
        image_classes: number of classes of the auxiliary image-level head; 0 means that there is no such head.
    """

    backbone: Annotated[str, Field(pattern=f"^{BACKBONE}$")]
    norm: Literal["group", "frozen_batch"]
    anchor_shapes: Annotated[tuple[tuple[AnchorScale, AnchorRatio], ...], Field(min_length=1, max_length=MAX_SHAPES)]
    num_classes: Annotated[int, Field(ge=1, le=100)]
    in_channels: Annotated[int, Field(ge=1, le=16)]
    mask_head: bool
    image_classes: Annotated[int, Field(ge=0, le=100)]


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class PostProcessing:
    """Conditions under which a candidate becomes a detection; the names are torchvision's where it has one.

    Attributes:
        score_thresh: candidates with a higher score are considered.
        nms_thresh: largest IoU of two detections; with ``weighted_fusion``, above it a box joins a cluster.
        detections_per_img: largest number of detections of an image.
        topk_candidates: largest number of candidates of each pyramid level.
        suppression: ``nms``, ``soft_nms`` or ``weighted_fusion``.
        soft_nms_sigma: the larger, the less an overlap costs.
        flip: whether to run the model on the mirrored image too.
        box_shrink: share of its width and height that each box loses.
        score_gate: whether the image-level head changes the scores: a score becomes
            ``sqrt(score (p_opacity + .1 p_not_normal))``.
    """

    score_thresh: Fraction
    nms_thresh: OpenFraction
    detections_per_img: Annotated[Count, Field(le=MOST_DETECTIONS)]
    topk_candidates: Annotated[Count, Field(le=10_000)]
    suppression: Literal["nms", "soft_nms", "weighted_fusion"]
    soft_nms_sigma: SoftNmsSigma
    flip: bool
    box_shrink: BoxShrink
    score_gate: bool

    @property
    def overlap_key(self) -> Literal["nms_thresh", "soft_nms_sigma"]:
        """Return the setting that decides what an overlap costs; ``suppression`` does not use the other one."""
        return "soft_nms_sigma" if self.suppression == "soft_nms" else "nms_thresh"


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class EnsembleSettings:
    """A model of several networks of one architecture.

    Attributes:
        members: number of networks.
        fusion_thresh: IoU above which boxes of different networks count as one finding; None: the networks' outputs
            are averaged, and there is nothing to fuse.
    """

    members: Annotated[int, Field(ge=2, le=20)]
    fusion_thresh: OpenFraction | None


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class AugmentSettings:
    """Random changes of training images: probabilities and largest amounts.

    Attributes:
        on_device: make them on the training device, for whole batches, instead of in the loader.
    """

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
    on_device: bool


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class LossSettings:
    """Matching of anchors to boxes, and the two losses that `DetectionLoss` computes."""

    classification: Literal[
        "focal",
        "cross_entropy",
        "balanced_cross_entropy",
        "weighted_cross_entropy",
        "frequency_balanced_cross_entropy",
        "quality_focal",
        "varifocal",
    ]
    alpha: Fraction
    gamma: NotNegative
    beta: Positive
    normalizer: Literal["per_image", "batch", "ema"]
    box: Literal["smooth_l1", "l1", "giou", "ciou"]
    box_beta: Positive
    box_weight: Positive
    matching: Literal["iou", "atss"]
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
