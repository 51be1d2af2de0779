"""Losses of the auxiliary heads, which help training and cost little or nothing at inference."""

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from pipeline.detection.backbones import STRIDES
from pipeline.detection.bounded import LOGIT_LIMIT, bounded
from pipeline.detection.dataset import UNKNOWN_CLASS
from pipeline.detection.mask_losses import MaskSettings, mask_loss
from pipeline.detection.retinanet import HeadOutputs


@dataclass(frozen=True)
class ExtraLosses:
    """Losses of the heads that a model has besides those for classes and boxes.

    Attributes:
        mask: settings of the mask losses; without terms there is no mask head.
        image_class: weight of the image-level cross-entropy; 0 means that there is no such head.
    """

    mask: MaskSettings
    image_class: float

    def __call__(self, outputs: HeadOutputs, boxes: Tensor, labels: Tensor, classes: Tensor) -> dict[str, Tensor]:
        """Return the weighted losses by name, as scalars.

        Args:
            outputs: outputs of the model.
            boxes: ``[B, M, 4]`` xyxy pixels.
            labels: ``[B, M]``, -1 where there is no box.
            classes: classes of the images ``[B]``, -1 where unknown.
        """
        losses = {}
        if self.mask.terms and outputs.mask is not None:
            losses["mask"] = mask_loss(outputs.mask, boxes, labels, self.mask, STRIDES[0])
        if self.image_class and outputs.image_class is not None:
            logits = bounded(outputs.image_class, LOGIT_LIMIT)
            each = F.cross_entropy(logits, classes, ignore_index=UNKNOWN_CLASS, reduction="sum")
            known = (classes != UNKNOWN_CLASS).sum().clamp(min=1)
            losses["image_class"] = self.image_class * each / known
        return losses
