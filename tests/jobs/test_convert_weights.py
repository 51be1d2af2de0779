"""Conversion of classifiers trained elsewhere: equal features, and refusals of anything but tensors."""

import importlib.util
import json

import pytest
import torch
import torchvision

from pipeline.detection.backbones import Backbone
from pipeline.detection.pretrained import resolve_backbone
from pipeline.detection.retinanet import PIXEL_MEAN, PIXEL_STD
from pipeline.errors import UserError
from pipeline.jobs.convert_weights import convert_weights
from tests.detection.conftest import randomize_norms

RANGE = 1024.0


def classifier(name):
    """Make torchvision's model with one input channel, as torchxrayvision does, with norms that show mistakes."""
    torch.manual_seed(0)
    model = getattr(torchvision.models, name)(num_classes=18)
    kernel = torch.nn.Conv2d(1, 64, 7, stride=2, padding=3, bias=False)
    if name == "densenet121":
        model.features.conv0 = kernel
    else:
        model.conv1 = kernel
    randomize_norms(model)
    return model.eval()


def last_features(model, name, images):
    if name == "densenet121":
        return model.features(images)
    steps = ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4")
    for step in steps:
        images = getattr(model, step)(images)
    return images


@pytest.mark.parametrize(("name", "prefix"), [("densenet121", ""), ("resnet50", "model.")])
def test_a_converted_classifier_has_equal_features(tmp_path, name, prefix):
    model = classifier(name)
    torch.save({prefix + key: value for key, value in model.state_dict().items()}, tmp_path / "weights.pt")
    out = convert_weights(tmp_path / "weights.pt", tmp_path / "out", name, RANGE, ["NIH ChestX-ray14"])
    assert json.loads((out / "config.json").read_text())["trained_on"] == ["NIH ChestX-ray14"]
    source = resolve_backbone(f"local-dir:{out}")
    own = Backbone(source.architecture, "pretrained", "frozen_batch", 1, source.file).eval()
    grey = torch.randint(0, 256, (1, 1, 96, 96)).float()
    with torch.no_grad():
        theirs = last_features(model, name, (2 * grey / 255 - 1) * RANGE)
        mine = own((grey - PIXEL_MEAN) / PIXEL_STD)[-1]
    assert _close(mine, theirs.relu())  # the last norm of timm's DenseNet has an activation


def _close(mine, theirs):
    return mine.shape == theirs.shape and (mine - theirs).norm() < 1e-3 * theirs.norm()


@pytest.mark.skipif(importlib.util.find_spec("torchxrayvision") is None, reason="needs torchxrayvision")
def test_torchxrayvision_itself(tmp_path):
    import torchxrayvision

    torch.manual_seed(0)
    model = torchxrayvision.models.DenseNet(num_classes=18, in_channels=1)
    randomize_norms(model)
    model.eval()
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    out = convert_weights(tmp_path / "weights.pt", tmp_path / "out", "densenet121", RANGE, [])
    source = resolve_backbone(f"local-dir:{out}")
    own = Backbone(source.architecture, "pretrained", "frozen_batch", 1, source.file).eval()
    grey = torch.randint(0, 256, (1, 1, 224, 224)).float()
    with torch.no_grad():
        assert _close(own((grey - PIXEL_MEAN) / PIXEL_STD)[-1], model.features((2 * grey / 255 - 1) * RANGE).relu())


class _Code:
    def __reduce__(self):
        return (print, ("run",))


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (_Code(), "not a state dict of tensors alone"),
        ([1, 2], "must hold a dict of tensors"),
        ({"fc.weight": torch.zeros(2, 2)}, "no features.conv0.weight in it, which densenet121 has"),
    ],
)
def test_what_is_no_state_dict(tmp_path, capsys, content, line):
    torch.save(content, tmp_path / "weights.pt")
    with pytest.raises(UserError, match=line):
        convert_weights(tmp_path / "weights.pt", tmp_path / "out", "densenet121", None, [])
    assert not (tmp_path / "out").exists()
    assert "run" not in capsys.readouterr().out


def test_weights_of_another_architecture(tmp_path):
    torch.save(classifier("resnet50").state_dict(), tmp_path / "weights.pt")
    with pytest.raises(UserError, match="give another --architecture"):
        convert_weights(tmp_path / "weights.pt", tmp_path / "out", "densenet121", None, [])
    with pytest.raises(UserError, match=r"is \[.*\], must be \[.*\] in resnet18|no .* in it"):
        convert_weights(tmp_path / "weights.pt", tmp_path / "out", "resnet18", None, [])
    with pytest.raises(UserError, match="no such file"):
        convert_weights(tmp_path / "none.pt", tmp_path / "out", "resnet18", None, [])
