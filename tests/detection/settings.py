"""Settings from which tests derive their own with `dataclasses.replace`."""

from dataclasses import replace

from pipeline.detection.anchors import shape_grid
from pipeline.detection.settings import Architecture, AugmentSettings, LossSettings, PostProcessing

LOSS = LossSettings(
    classification="focal", alpha=0.25, gamma=2.0, beta=1.0, normalizer="batch",
    box="smooth_l1", box_beta=1 / 9, box_weight=1.0, matching="iou", fg_iou_thresh=0.5, bg_iou_thresh=0.4,
    low_quality_matches=True, sampling="all", ohem_ratio=3.0,
)  # fmt: skip
# Every kind of change applies to some images.
AUGMENT = AugmentSettings(
    horizontal_flip=0.5, affine=1, scale=0.2, translate=0.1, rotate=5, brightness_contrast=1, brightness=0.2,
    contrast=0.2, gamma=1, noise=1, min_visibility=0.3, on_device=False,
)  # fmt: skip

POST_PROCESSING = PostProcessing(
    score_thresh=0.05,
    nms_thresh=0.5,
    detections_per_img=20,
    topk_candidates=100,
    suppression="nms",
    soft_nms_sigma=0.5,
    flip=False,
    box_shrink=0.0,
    score_gate=False,
)

TINY = Architecture(
    backbone="resnet10t",
    norm="group",
    fpn_channels=32,
    p6_source="p5",
    head_convs=1,
    head_norm="group",
    prior_probability=0.01,
    anchor_shapes=shape_grid((1.0, 1.26, 1.587), (0.75, 1.3, 2.2)),
    num_classes=1,
    in_channels=1,
    mask_head=False,
    image_classes=0,
)
# The architecture of torchvision's retinanet_resnet50_fpn.
TORCHVISION = replace(
    TINY,
    backbone="resnet50",
    norm="frozen_batch",
    fpn_channels=256,
    head_convs=4,
    head_norm="none",
    anchor_shapes=shape_grid((1.0, 1.26, 1.587), (0.5, 1.0, 2.0)),
)
