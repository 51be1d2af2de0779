"""The network and the losses of a step as one module, which a compiler takes as one graph."""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from pipeline.detection.anchors import Anchors
from pipeline.detection.dataset import Batch
from pipeline.detection.extra_losses import ExtraLosses
from pipeline.detection.losses import DetectionLoss, Totals
from pipeline.detection.retinanet import HeadOutputs, RetinaNet

Values = dict[str, Tensor]
TOTAL = "train/loss"


class StepLosses(nn.Module):
    """All losses of a batch.

    Attributes:
        detection: loss of classes and boxes.
        auxiliary: losses of the auxiliary heads.
    """

    def __init__(self, detection: DetectionLoss, auxiliary: ExtraLosses) -> None:
        super().__init__()
        self.detection, self.auxiliary = detection, auxiliary

    def forward(
        self,
        outputs: HeadOutputs,
        boxes: Tensor,
        labels: Tensor,
        image_classes: Tensor,
        anchors: Anchors,
        totals: Totals | None,
    ) -> Values:
        """Return scalars: the batch's share of the step's losses and counts; only their sum `TOTAL` has a gradient.

        Args:
            outputs: outputs of the network, float32.
            boxes: ``[B, M, 4]`` xyxy pixels.
            labels: ``[B, M]``, -1 where there is no box.
            image_classes: ``[B]``, -1 where unknown.
            anchors: anchors in the order of the outputs.
            totals: counts of the step, if this batch is only a part of it.
        """
        share = 1.0 if totals is None else len(boxes) / totals.images
        losses = self.detection(outputs.logits, outputs.deltas, anchors, boxes, labels, totals)
        auxiliary = self.auxiliary(outputs, boxes, labels, image_classes)
        auxiliary = {name: value * share for name, value in auxiliary.items()}
        return {
            TOTAL: losses.classification + losses.box + sum(auxiliary.values()),
            "train/loss_classification": losses.classification.detach(),
            "train/loss_box": losses.box.detach(),
            **{f"train/loss_{name}": value.detach() for name, value in auxiliary.items()},
            "train/positives_per_image": losses.positives * share,
        }


class NetworkWithLosses(nn.Module):
    """From images to losses: what a step differentiates.

    Attributes:
        network: the detector.
        losses: takes its outputs and the arguments of `truth`.
    """

    def __init__(self, network: RetinaNet, losses: nn.Module) -> None:
        super().__init__()
        self.network, self.losses = network, losses

    def forward(self, images: Tensor, dropout_factors: Sequence[Tensor] | None, *truth: object) -> Values:
        """Return the losses of images ``[B, C, H, W]``; see `RetinaNet.forward` and `StepLosses.forward`."""
        outputs = self.network(images, dropout_factors=dropout_factors).map(Tensor.float)
        # Logarithms and small differences of boxes lose their precision in 16-bit types.
        with torch.autocast(images.device.type, enabled=False):
            return cast(Values, self.losses(outputs, *truth))

    def truth(self, batch: Batch, totals: Totals | None) -> tuple[Tensor, Tensor, Tensor, Anchors, Totals | None]:
        """Return the arguments of `StepLosses.forward` for a batch."""
        return batch.boxes, batch.labels, batch.image_classes, self.network.anchors_for(batch.images), totals
