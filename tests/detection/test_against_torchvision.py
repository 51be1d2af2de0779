"""Our model with torchvision's settings and weights gives torchvision's numbers."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torchvision.models.detection import retinanet_resnet50_fpn, retinanet_resnet50_fpn_v2

from pipeline.detection.anchors import shape_grid
from pipeline.detection.losses import DetectionLoss
from pipeline.detection.postprocess import post_process, separate
from pipeline.detection.retinanet import PIXEL_MEAN, PIXEL_STD, RetinaNet
from pipeline.detection.weights import load_torchvision
from tests.detection.conftest import randomize_norms
from tests.detection.settings import LOSS, POST_PROCESSING, TORCHVISION

SIZE = 256
MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
SHAPES = shape_grid((1.0, 2 ** (1 / 3), 2 ** (2 / 3)), (0.5, 1.0, 2.0))
V1 = replace(TORCHVISION, anchor_shapes=SHAPES, num_classes=3, in_channels=3)
V2 = replace(V1, p6_source="c5", head_norm="group")


def torchvision_model(version):
    """Build a model with random weights that hide no mistake: norms have statistics, the class head finds objects."""
    build = retinanet_resnet50_fpn if version == 1 else retinanet_resnet50_fpn_v2
    model = build(weights=None, weights_backbone=None, num_classes=3, min_size=SIZE, max_size=SIZE)
    randomize_norms(model)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 0.0 if version == 1 else 1e-5  # as torchvision sets it for its trained weights
    for module in model.head.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
    nn.init.normal_(model.head.classification_head.cls_logits.weight, std=0.03)
    nn.init.constant_(model.head.classification_head.cls_logits.bias, -2.0)
    # Small offsets: we drop boxes that large ones move out of the image, torchvision does not.
    nn.init.normal_(model.head.regression_head.bbox_reg.weight, std=0.002)
    return model.eval()


@pytest.fixture(scope="module", params=[1, 2])
def pair(request):
    """Return ``(version, torchvision's model, our model with its weights)``."""
    torch.manual_seed(request.param)
    theirs = torchvision_model(request.param)
    ours = RetinaNet(V1 if request.param == 1 else V2).eval()
    load_torchvision(ours, theirs.state_dict(), eps=0.0 if request.param == 1 else 1e-5)
    return request.param, theirs, ours


@pytest.fixture
def images():
    return torch.rand(4, 3, SIZE, SIZE)


def boxes_of(count):
    low = torch.rand(count, 2) * SIZE * 0.6
    return torch.cat([low, low + 15 + torch.rand(count, 2) * SIZE * 0.35], 1)


def grey_levels(images):
    """Return images that our model normalises to the values that torchvision's model makes of ``images``."""
    return (images - MEAN[:, None, None]) / STD[:, None, None] * PIXEL_STD + PIXEL_MEAN


def torchvision_heads(model, images):
    prepared, _ = model.transform(list(images))
    features = list(model.backbone(prepared.tensors).values())
    return model.head(features), model.anchor_generator(prepared, features)


@torch.no_grad()
def test_head_outputs_and_anchors(pair, images):
    _, theirs, ours = pair
    heads, anchors = torchvision_heads(theirs, images)
    outputs = ours(grey_levels(images))
    for found, wanted in ((outputs.logits, heads["cls_logits"]), (outputs.deltas, heads["bbox_regression"])):
        assert float(wanted.std()) > 0.01
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4 * float(wanted.abs().max()))
    torch.testing.assert_close(ours.anchors_for(images).boxes, anchors[0], rtol=0, atol=0)


@torch.no_grad()
@pytest.mark.parametrize("counts", [(0, 1, 4, 20), (0, 0, 0, 0), (20, 20, 1, 1)])
def test_losses(pair, images, counts):
    version, theirs, ours = pair
    truth = [boxes_of(count) for count in counts]
    classes = [torch.randint(0, 3, (count,)) for count in counts]
    heads, anchors = torchvision_heads(theirs, images)
    targets = [{"boxes": box, "labels": label} for box, label in zip(truth, classes, strict=True)]
    wanted = theirs.compute_loss(targets, heads, anchors)
    most = max(1, *counts)
    boxes, labels = torch.ones(len(counts), most, 4), torch.full((len(counts), most), -1)
    for row, (box, label) in enumerate(zip(truth, classes, strict=True)):
        boxes[row, : len(box)], labels[row, : len(box)] = box, label
    kind = "l1" if version == 1 else "giou"
    loss = DetectionLoss(replace(LOSS, normalizer="per_image", box=kind, box_beta=1.0))
    outputs = ours(grey_levels(images))
    found = loss(outputs.logits, outputs.deltas, ours.anchors_for(images), boxes, labels)
    torch.testing.assert_close(found.classification, wanted["classification"], rtol=1e-4, atol=0)
    torch.testing.assert_close(found.box, wanted["bbox_regression"], rtol=1e-4, atol=1e-7)


@torch.no_grad()
def test_detections(pair, images):
    _, theirs, ours = pair
    post_processing = replace(POST_PROCESSING, detections_per_img=300, topk_candidates=1000)
    outputs, anchors = ours(grey_levels(images)), ours.anchors_for(images)
    found = separate(post_process(outputs, anchors, (SIZE, SIZE), post_processing))
    for one, wanted in zip(found, theirs(list(images)), strict=True):
        assert len(one["boxes"]) == len(wanted["boxes"]) > 50
        torch.testing.assert_close(one["scores"], wanted["scores"], rtol=1e-4, atol=1e-6)
        # Compare as sets: boxes whose scores differ only in the last digit may swap places.
        near = torch.cdist(one["boxes"], wanted["boxes"], p=torch.inf) < 1e-2
        near &= one["labels"][:, None] == wanted["labels"][None, :]
        near &= (one["scores"][:, None] - wanted["scores"][None, :]).abs() < 1e-4
        assert near.any(1).all()
        assert near.any(0).all()
