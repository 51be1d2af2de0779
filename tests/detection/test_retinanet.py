import copy
import math
from dataclasses import replace

import pytest
import timm
import torch
from torch import nn

from pipeline.detection.backbones import Backbone, FoldedConv2d
from pipeline.detection.losses import DetectionLoss
from pipeline.detection.retinanet import RetinaNet
from pipeline.errors import UserError
from tests.detection.conftest import randomize_norms
from tests.detection.settings import TINY


@pytest.mark.parametrize(("height", "width"), [(128, 128), (192, 64)])
def test_one_output_per_anchor(architecture, height, width):
    model = RetinaNet(architecture)
    images = torch.randint(0, 255, (2, 1, height, width), dtype=torch.uint8)
    outputs = model(images)
    anchors = model.anchors_for(images).boxes
    assert outputs.logits.shape == (2, len(anchors), 1)
    assert outputs.deltas.shape == (2, len(anchors), 4)


def test_every_anchor_starts_at_the_prior(architecture):
    model = RetinaNet(architecture)
    probability = model(torch.randint(0, 255, (1, 1, 128, 128))).logits.sigmoid()
    assert abs(probability.mean().item() - 0.01) < 0.002
    assert model.class_head.last.bias[0].item() == pytest.approx(-math.log(99))


@pytest.mark.parametrize("norm", ["group", "frozen_batch"])
def test_no_layer_depends_on_the_rest_of_the_batch(architecture, norm):
    model = RetinaNet(replace(architecture, norm=norm)).train()
    images = torch.randint(0, 255, (3, 1, 128, 128))
    torch.testing.assert_close(model(images).logits[:1], model(images[:1]).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["resnet18", "efficientnet_lite0", "convnext_atto"])
def test_backbones_give_three_levels(name):
    backbone = Backbone(name, "none", "group")
    features = backbone(torch.zeros(1, 1, 64, 64))
    assert [tuple(level.shape) for level in features] == [
        (1, channels, 64 // stride, 64 // stride)
        for channels, stride in zip(backbone.channels, (8, 16, 32), strict=True)
    ]
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in backbone.modules())


def test_unknown_and_unfit_backbones():
    with pytest.raises(UserError, match="model.backbone = 'resnet_18': not a timm model"):
        Backbone("resnet_18", "none", "group")
    with pytest.raises(UserError, match="no features at stride"):
        Backbone("vit_small_patch32_224", "none", "group")


def test_weights_that_cannot_be_fetched(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="model.weights = 'imagenet': the weights of resnet18: cannot be fetched"):
        Backbone("resnet18", "imagenet", "frozen_batch")


@pytest.mark.parametrize("name", ["resnet18", "seresnext50_32x4d", "efficientnet_lite0"])
def test_folded_norms_change_no_number(name):
    torch.manual_seed(0)
    plain = timm.create_model(name, features_only=True, in_chans=1)
    randomize_norms(plain)
    folded = Backbone(name, "none", "frozen_batch")
    names = {f"{norm}.": f"{conv}.norm." for norm, conv in folded.folded.items()}
    assert len(names) == sum(isinstance(module, nn.BatchNorm2d) for module in plain.modules())
    state = {}
    for key, value in plain.state_dict().items():
        norm = next((norm for norm in names if key.startswith(norm)), None)
        state[names[norm] + key.removeprefix(norm) if norm else key] = value
    folded.body.load_state_dict({key: value for key, value in state.items() if not key.endswith("batches_tracked")})
    images = torch.randn(2, 1, 64, 64)
    wanted = [plain.eval()(images)[level] for level in folded.levels]
    found = folded(images)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)
    sum(level.square().mean() for level in found).backward()
    sum(level.square().mean() for level in wanted).backward()
    stem = next(key for key, value in folded.body.named_parameters() if value.ndim == 4)
    theirs = dict(plain.named_parameters())[stem].grad
    torch.testing.assert_close(dict(folded.body.named_parameters())[stem].grad, theirs, rtol=1e-2, atol=1e-4)
    assert not any("norm" in key for key, value in folded.body.named_parameters())


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["group", "frozen_batch"])
@pytest.mark.parametrize(
    "name",
    [
        "resnet18", "resnet34", "resnet50", "resnet101", "resnext50_32x4d", "seresnext50_32x4d",
        "efficientnet_lite0", "convnext_tiny",
    ],
)  # fmt: skip
def test_backbones_build_and_take_a_step(architecture, loss_settings, name, norm):
    model = RetinaNet(replace(architecture, backbone=name, norm=norm))
    images = torch.randint(0, 255, (1, 1, 128, 128), dtype=torch.uint8)
    boxes, labels = torch.tensor([[[10.0, 10, 60, 90]]]), torch.zeros(1, 1, dtype=torch.long)
    loss = DetectionLoss(loss_settings)
    optimizer = torch.optim.SGD([weight for weight in model.parameters() if weight.requires_grad], 1e-4)
    with torch.autocast("cpu", torch.bfloat16):
        outputs = model(images)
    losses = loss(outputs.logits, outputs.deltas, model.anchors_for(images), boxes, labels)
    (losses.classification + losses.box).backward()
    optimizer.step()
    assert (losses.classification + losses.box).isfinite()
    reached = [bool(weight.grad.any()) for weight in model.backbone.parameters() if weight.ndim == 4]
    # The last stage's own weights may get no gradient, as no box is of its size. But no residual branch is dead.
    assert sum(reached) > 0.6 * len(reached)
    assert all(torch.isfinite(weight).all() for weight in model.parameters())


@pytest.mark.parametrize("name", ["resnet18", "efficientnet_lite0", "convnext_atto"])
def test_frozen_stages_do_not_learn(name):
    backbone = Backbone(name, "none", "group")
    total, counts = len(list(backbone.parameters())), []
    for stages in range(4):
        backbone.freeze(stages)
        counts.append(sum(not parameter.requires_grad for parameter in backbone.parameters()))
    assert counts[0] == 0
    assert counts == sorted(counts)
    assert 0 < counts[1] < counts[3] < total
    sum(level.mean() for level in backbone(torch.randn(1, 1, 64, 64))).backward()
    assert all((parameter.grad is None) != parameter.requires_grad for parameter in backbone.parameters())
    with pytest.raises(UserError, match="model.frozen_stages = 6: the backbone has"):
        backbone.freeze(6)


def test_a_network_may_be_made_in_inference_mode():
    """Its buffers do not say when they change, so nothing is kept."""
    with torch.inference_mode():
        made = RetinaNet(replace(TINY, norm="frozen_batch")).eval()
        images = torch.randint(0, 256, (1, 1, 64, 64), dtype=torch.uint8)
        before = made(images).logits
        for name, value in made.named_buffers():
            if name.endswith("running_mean"):
                value.add_(1.0)
        assert not torch.equal(made(images).logits, before)


def test_folded_norms_follow_their_buffers():
    """Factors are kept from step to step, but not past new weights."""
    folded = RetinaNet(replace(TINY, norm="frozen_batch")).backbone
    layer = next(module for module in folded.modules() if isinstance(module, FoldedConv2d))
    features = torch.rand(2, layer.weight.shape[1], 16, 16)

    def expected():
        norm, (stride, padding, *_) = layer.norm, layer._geometry
        plain = torch.nn.functional.conv2d(features, layer.weight, None, stride, padding)
        return torch.nn.functional.batch_norm(
            plain, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps
        )

    def check():
        torch.testing.assert_close(layer(features), expected(), rtol=1e-4, atol=1e-4)

    check()
    kept = layer._kept
    check()
    assert layer._kept is kept
    layer.norm.bias.add_(3.0)
    check()
    state = {name: torch.rand_like(value) + 0.5 for name, value in folded.state_dict().items()}
    for assign in (False, True):
        folded.load_state_dict({name: value * (2 if assign else 1) for name, value in state.items()}, assign=assign)
        check()
    other = copy.deepcopy(layer)
    other.norm.weight.mul_(2.0)
    assert not torch.allclose(other(features), layer(features))
    check()
    layer, features = layer.double(), features.double()
    check()
