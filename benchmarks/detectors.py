"""Our detector and torchvision's with the same layers, and one batch for both."""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchvision.models.detection import RetinaNet as TorchvisionRetinaNet
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.detection.retinanet import _default_anchorgen
from torchvision.ops.feature_pyramid_network import LastLevelP6P7
from torchvision.ops.misc import FrozenBatchNorm2d

from pipeline.data.annotations import IMAGES
from pipeline.data.geometry import xyxy
from pipeline.detection.anchors import shape_grid
from pipeline.detection.dataset import UNKNOWN_CLASS
from pipeline.detection.dataset import Batch as TrainingBatch
from pipeline.detection.device import make_fabric, used_precision
from pipeline.detection.extra_losses import ExtraLosses
from pipeline.detection.losses import DetectionLoss
from pipeline.detection.mask_losses import MaskSettings
from pipeline.detection.retinanet import RetinaNet
from pipeline.detection.settings import Architecture, LossSettings, PostProcessing
from pipeline.dicom.radiograph import read_radiograph
from pipeline.sources.sample import draw_boxes, make_sample
from pipeline.training.network_with_losses import TOTAL, NetworkWithLosses, StepLosses
from pipeline.training.passes import Passes

SHAPES = shape_grid((1.0, 2 ** (1 / 3), 2 ** (2 / 3)), (0.5, 1.0, 2.0))
ARCHITECTURE = Architecture(
    backbone="resnet50",
    norm="frozen_batch",
    fpn_channels=256,
    p6_source="p5",
    head_convs=4,
    head_norm="none",
    prior_probability=0.01,
    anchor_shapes=SHAPES,
    num_classes=1,
    in_channels=1,
    mask_head=False,
    image_classes=0,
)
# torchvision's defaults.
POST_PROCESSING = PostProcessing(
    score_thresh=0.05,
    nms_thresh=0.5,
    detections_per_img=300,
    topk_candidates=1000,
    suppression="nms",
    soft_nms_sigma=0.5,
    flip=False,
    box_shrink=0.0,
    score_gate=False,
)
LOSS = LossSettings(
    classification="focal",
    alpha=0.25,
    gamma=2.0,
    beta=1.0,
    normalizer="per_image",
    box="l1",
    box_beta=1 / 9,
    box_weight=1.0,
    matching="iou",
    fg_iou_thresh=0.5,
    bg_iou_thresh=0.4,
    low_quality_matches=True,
    sampling="all",
    ohem_ratio=3.0,
)


class Batch(NamedTuple):
    """A batch in the form that each detector takes."""

    images: Tensor  # uint8 [B, 1, S, S]
    boxes: Tensor  # [B, M, 4]
    labels: Tensor  # [B, M]
    torchvision_images: list[Tensor]
    torchvision_targets: list[dict[str, Tensor]]

    def to(self, device: torch.device) -> "Batch":
        """Copy the batch to a device."""
        images = [image.to(device) for image in self.torchvision_images]
        targets = [{name: value.to(device) for name, value in one.items()} for one in self.torchvision_targets]
        return Batch(self.images.to(device), self.boxes.to(device), self.labels.to(device), images, targets)


def our_detector() -> RetinaNet:
    return RetinaNet(ARCHITECTURE).to(memory_format=torch.channels_last)


def torchvision_detector(size: int) -> TorchvisionRetinaNet:
    """Build ``retinanet_resnet50_fpn`` with every layer trained and the frozen norms that its trained weights use."""
    backbone = resnet_fpn_backbone(
        backbone_name="resnet50", weights=None, norm_layer=FrozenBatchNorm2d, trainable_layers=5,
        returned_layers=[2, 3, 4], extra_blocks=LastLevelP6P7(256, 256),
    )  # fmt: skip
    return TorchvisionRetinaNet(
        backbone, num_classes=1, anchor_generator=_default_anchorgen(), min_size=size, max_size=size
    )


def our_step(model: RetinaNet, batch: Batch, whole: bool = False) -> Callable[[], None]:
    """Return a training step of our model: forward, loss, backward and optimizer, in bf16 where the device has it.

    On a CPU the batch goes through the network in parts, unless ``whole`` is set, as for a compiled model.
    """
    device = batch.images.device
    fabric = make_fabric(device.type, used_precision(device.type, "bf16-mixed"))
    losses = StepLosses(DetectionLoss(LOSS), ExtraLosses(MaskSettings({}, 0.5, 10.0, 5.0), 0.0))
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4, fused=True)
    module, optimizer = fabric.setup(NetworkWithLosses(model, losses).train(), optimizer)
    passes = Passes(fabric, module, len(batch.images), compiled=whole)
    unknown = torch.full((len(batch.images),), UNKNOWN_CLASS, device=device)
    own = TrainingBatch(batch.images, batch.boxes, batch.labels, unknown, unknown)

    def step() -> None:
        with passes.rest_on_one_core():
            run()

    def run() -> None:
        values, backward = passes.forward(own)
        backward(values[TOTAL])
        optimizer.step()
        optimizer.zero_grad()

    return step


def torchvision_step(model: TorchvisionRetinaNet, batch: Batch, tuned: bool) -> Callable[[], None]:
    """Return the same step for torchvision's model; ``tuned`` gives it bf16 and channels_last too."""
    model = model.train().to(memory_format=torch.channels_last if tuned else torch.contiguous_format)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4)

    def step() -> None:
        with torch.autocast(batch.images.device.type, torch.bfloat16, enabled=tuned):
            losses = model(batch.torchvision_images, batch.torchvision_targets)
        sum(losses.values()).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def make_batch(size: int, boxes_per_image: Sequence[int]) -> Batch:
    """Make synthetic radiographs; ``boxes_per_image`` gives the number of boxes of each."""
    count = len(boxes_per_image)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "rsna"
        make_sample(out, studies=count, size=size, seed=1, opacity_fraction=1.0, labels=None, workers=0)
        images = np.stack([read_radiograph(path).pixels for path in sorted((out / IMAGES).glob("*.dcm"))])
    rng = np.random.default_rng(0)
    truth = [_boxes(number, size, rng) for number in boxes_per_image]
    boxes, labels = torch.ones(count, max(1, *boxes_per_image), 4), torch.full((count, max(1, *boxes_per_image)), -1)
    for row, box in enumerate(truth):
        boxes[row, : len(box)], labels[row, : len(box)] = box, 0
    grey = torch.from_numpy(images)[:, None]
    targets = [{"boxes": box, "labels": torch.zeros(len(box), dtype=torch.long)} for box in truth]
    return Batch(grey, boxes, labels, list((grey.float() / 255).repeat(1, 3, 1, 1)), targets)


def _boxes(count: int, size: int, rng: np.random.Generator) -> Tensor:
    drawn = np.zeros((0, 4))
    while len(drawn) < count:
        drawn = np.concatenate([drawn, draw_boxes(size, rng)])
    return torch.from_numpy(xyxy(drawn[:count])).float()
