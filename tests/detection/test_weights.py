from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torchvision.models.detection import RetinaNet_ResNet50_FPN_Weights, retinanet_resnet50_fpn

from pipeline.detection.retinanet import RetinaNet
from pipeline.detection.weights import start_from
from pipeline.errors import UserError
from tests.detection.settings import TORCHVISION


def test_coco_weights_that_cannot_be_fetched(monkeypatch, tmp_path):
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")  # nothing listens there
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(UserError, match="'coco': https://.* cannot be fetched .* or set model.weights: none"):
        start_from(RetinaNet(TORCHVISION), "coco")


def test_coco_weights_fit_one_architecture(architecture):
    with pytest.raises(UserError, match="'coco': needs backbone resnet50"):
        start_from(RetinaNet(architecture), "coco")


def test_coco_weights_from_the_cache(monkeypatch, tmp_path):
    """Load torchvision's own file, as torch.hub leaves it: its classes and colours differ from ours."""
    theirs = retinanet_resnet50_fpn(weights=None, weights_backbone=None, num_classes=91)
    state = theirs.state_dict()
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    cached = tmp_path / "hub/checkpoints" / Path(RetinaNet_ResNet50_FPN_Weights.COCO_V1.url).name
    cached.parent.mkdir(parents=True)
    torch.save(state, cached)
    model = RetinaNet(TORCHVISION)
    prior = model.class_head.last.bias.clone()
    start_from(model, "coco")
    assert torch.equal(model.fpn.state_dict()["inner_blocks.0.0.weight"], state["backbone.fpn.inner_blocks.0.0.weight"])
    stem = state["backbone.body.conv1.weight"]
    assert torch.equal(model.backbone.body.conv1.weight, stem.sum(1, keepdim=True))
    assert torch.equal(model.class_head.last.bias, prior)


def test_a_trained_model(architecture, tmp_path):
    trained, model = RetinaNet(architecture), RetinaNet(architecture)
    save_file(trained.state_dict(), tmp_path / "model.safetensors")
    start_from(model, str(tmp_path))
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in trained.state_dict().items())
    with pytest.raises(UserError, match="no .* of shape"):
        start_from(RetinaNet(replace(architecture, fpn_channels=64)), str(tmp_path))
    (tmp_path / "model.safetensors").write_text("no weights")
    with pytest.raises(UserError, match="model.weights = .*: not a readable safetensors file"):
        start_from(model, str(tmp_path))
    with pytest.raises(UserError, match="not a readable safetensors file"):
        start_from(model, "imagnet")
