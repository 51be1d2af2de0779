"""Nothing waits for a GPU: run on tensors without values on a "cuda" device, where reading a value is an error.

So neither a GPU nor its driver is needed, but for backward passes, which these tests leave out.
"""

from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from pipeline.detection.augment_on_device import DeviceAugmenter
from pipeline.detection.dataset import Batch
from pipeline.detection.detect import find
from pipeline.detection.ensemble import Ensemble
from pipeline.detection.extra_losses import ExtraLosses
from pipeline.detection.losses import DetectionLoss
from pipeline.detection.mask_losses import MaskSettings
from pipeline.detection.postprocess import separate
from pipeline.detection.retinanet import RetinaNet
from tests.detection.settings import AUGMENT, LOSS, POST_PROCESSING, TINY

SIZE = 128


class NoCopies(TorchDispatchMode):
    """Refuse copies from the device to the CPU, and count those that are allowed."""

    def __init__(self):
        super().__init__()
        self.allowed = self.made = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        source = next((one for one in args if isinstance(one, torch.Tensor)), None)
        if isinstance(result, torch.Tensor) and source is not None and source.is_cuda and result.is_cpu:
            self.made += 1
            assert self.made <= self.allowed, f"{function} copies to the CPU"
        return result


@contextmanager
def fake_gpu():
    with FakeTensorMode(), torch.device("cuda"), NoCopies() as copies:
        yield copies


def batch():
    images = torch.zeros(3, 1, SIZE, SIZE, dtype=torch.uint8)
    boxes, labels = torch.zeros(3, 2, 4), torch.zeros(3, 2, dtype=torch.int64)
    assert images.is_cuda
    return images, boxes, labels


def test_these_tests_see_what_waits():
    with fake_gpu() as copies:
        values = torch.zeros(3)
        with pytest.raises(DataDependentOutputException):
            values.sum().item()
        with pytest.raises(DynamicOutputShapeException):
            values.nonzero()
        with pytest.raises(DynamicOutputShapeException):
            values[values > 0]
        with pytest.raises(AssertionError, match="copies to the CPU"):
            values.cpu()
        copies.allowed = 2
        values.cpu()


@torch.no_grad()
@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("suppression", ["nms", "soft_nms"])
@pytest.mark.parametrize("networks", [1, 2])
def test_detection_waits_once_when_the_results_are_fetched(suppression, flip, networks):
    rules = replace(POST_PROCESSING, suppression=suppression, flip=flip)
    with fake_gpu() as copies:
        members = [RetinaNet(TINY).eval() for _ in range(networks)]
        found = find(members[0] if networks == 1 else Ensemble(members, None), batch()[0], rules)
        assert found.boxes.shape == (3, rules.detections_per_img, 4)
        assert found.scores.is_cuda
        copies.allowed = 1
        with pytest.raises(DynamicOutputShapeException):  # on the CPU, from where on nothing waits
            separate(found)
        assert copies.made == 1


@torch.no_grad()
@pytest.mark.parametrize(("model", "rules"), [("one", "weighted_fusion"), ("fused", "nms")])
def test_candidates_are_fetched_once_where_boxes_are_fused(model, rules):
    rules = replace(POST_PROCESSING, suppression=rules)
    with fake_gpu() as copies:
        network = RetinaNet(TINY).eval()
        copies.allowed = 3  # boxes, scores and labels
        with pytest.raises(DataDependentOutputException):
            find(network if model == "one" else Ensemble([network, network], 0.5), batch()[0], rules)
        assert copies.made == 3


@pytest.mark.parametrize("change", [
    {}, {"matching": "atss"}, {"classification": "quality_focal"}, {"classification": "varifocal"}, {"box": "giou"},
    {"box": "ciou"},
    {"classification": "frequency_balanced_cross_entropy"}, {"sampling": "ohem"}, {"normalizer": "ema"},
], ids=str)  # fmt: skip
def test_matching_and_losses(change):
    with fake_gpu():
        images, boxes, labels = batch()
        model, loss = RetinaNet(TINY).train(), DetectionLoss(replace(LOSS, **change))
        outputs = model(images)
        losses = loss(outputs.logits, outputs.deltas, model.anchors_for(images), boxes, labels)
        assert all(value.is_cuda for value in losses)


@pytest.mark.parametrize("mask", ["bce", "distance_weighted_bce", "dice", "tversky", "lovasz_hinge", "lovasz_softmax"])
def test_auxiliary_losses(mask):
    with fake_gpu():
        images, boxes, labels = batch()
        model = RetinaNet(replace(TINY, mask_head=True, image_classes=3)).train()
        extra = ExtraLosses(MaskSettings({mask: 1.0}, 0.5, 10.0, 5.0), 1.0)
        losses = extra(model(images), boxes, labels, torch.zeros(3, dtype=torch.int64))
        assert len(losses) == 2
        assert all(value.is_cuda for value in losses.values())


def test_augmentation_on_the_device():
    with fake_gpu():
        images, boxes, labels = batch()
        given = Batch(images, boxes, labels, torch.zeros(3), torch.zeros(3))
        changed = DeviceAugmenter(AUGMENT)(given)
        for one, other in zip(changed[:3], given[:3], strict=True):
            assert one.is_cuda
            assert (one.shape, one.dtype) == (other.shape, other.dtype)
