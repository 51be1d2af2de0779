"""Backbones from addresses: folders and hub repositories, their refusals, and what is known of their training data."""

import contextlib
import json
import socket
import threading

import pytest
import timm
import torch
from safetensors.torch import save_file

from pipeline.detection.backbones import Backbone
from pipeline.detection.pretrained import imagenet_file, resolve_backbone, saw_nih
from pipeline.errors import UserError


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(1)
    path = tmp_path / "weights"
    path.mkdir()
    save_file(timm.create_model("resnet10t", num_classes=3).state_dict(), path / "model.safetensors")
    (path / "config.json").write_text(json.dumps({"architecture": "resnet10t", "num_classes": 3}))
    return path


def test_a_folder_names_the_architecture_and_has_the_weights(folder):
    source = resolve_backbone(f"local-dir:{folder}")
    assert source.architecture == "resnet10t"
    grey = Backbone(source.architecture, "pretrained", "frozen_batch", 1, source.file)
    images = torch.rand(1, 1, 64, 64)
    oracle = timm.create_model("resnet10t", num_classes=3, features_only=True)
    oracle.load_state_dict(torch_weights(folder), strict=False)
    wanted = oracle.eval()(images.repeat(1, 3, 1, 1))[-3:]
    for mine, theirs in zip(grey(images), wanted, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-4)


def torch_weights(folder):
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize(
    ("config", "line"),
    [
        (None, "no .*config.json; it must name a timm model"),
        ({"architecture": "resnet1000"}, 'architecture "resnet1000" is no timm model'),
        ({"architecture": "../../etc/passwd"}, "is no timm model"),
        ({}, "architecture null is no timm model"),
        ({"architecture": "resnet10t", "model_args": {"depth": 3}}, "model_args are not supported"),
    ],
)
def test_a_folder_that_is_none(folder, config, line):
    (folder / "config.json").unlink()
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=line):
        resolve_backbone(f"local-dir:{folder}")


def test_weights_must_be_safetensors(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(UserError, match="weights must be a safetensors file, see `pneumoflow convert-weights`"):
        resolve_backbone(f"local-dir:{folder}")
    (folder / "model.safetensors").write_bytes(b"\x80\x02pickle")
    source = resolve_backbone(f"local-dir:{folder}")
    with pytest.raises(UserError, match="model.safetensors: damaged"):
        Backbone(source.architecture, "pretrained", "frozen_batch", 1, source.file)


@pytest.mark.parametrize("prefix", ["hf-hub:", "hf_hub:"])
def test_a_repository_is_read_from_the_cache_without_a_network(folder, tmp_path, monkeypatch, prefix):
    import huggingface_hub.constants as constants

    cache = tmp_path / "hub"
    snapshot = cache / "models--clinic--chest" / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (snapshot.parent.parent / "refs").mkdir()
    (snapshot.parent.parent / "refs" / "main").write_text("a" * 40)
    for path in folder.iterdir():
        path.rename(snapshot / path.name)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    source = resolve_backbone(f"{prefix}clinic/chest")
    assert source.architecture == "resnet10t"
    assert source.file == snapshot / "model.safetensors"
    with pytest.raises(UserError, match="model.backbone = 'hf-hub:clinic/other': cannot be fetched"):
        resolve_backbone("hf-hub:clinic/other")


@pytest.mark.parametrize("rename", [lambda name: f"encoder.{name}", lambda name: name.replace("layer", "block")])
def test_weights_of_another_network_are_refused(folder, rename):
    """timm itself loads what fits, and leaves the rest at random."""
    save_file({rename(name): one for name, one in torch_weights(folder).items()}, folder / "model.safetensors")
    source = resolve_backbone(f"local-dir:{folder}")
    with pytest.raises(UserError, match=r"model.safetensors has \d+ of the network's \d+ kernels; are they of another"):
        Backbone(source.architecture, "pretrained", "frozen_batch", 1, source.file)


def test_weights_of_a_smaller_network_of_the_family_are_refused(tmp_path):
    save_file(timm.create_model("resnet18").state_dict(), tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="are they of another network"):
        Backbone("resnet34", "pretrained", "frozen_batch", 1, tmp_path / "model.safetensors")


def test_a_plain_transformer_loads_a_file(tmp_path):
    """timm has a reader of its own for this transformer's weights, which takes .npz files too."""
    torch.manual_seed(1)
    weights = timm.create_model("vit_tiny_patch16_224").state_dict()
    save_file(weights, tmp_path / "model.safetensors")
    named = "vit_tiny_patch16_224.augreg_in21k"
    backbone = Backbone(named, "pretrained", "frozen_batch", 3, tmp_path / "model.safetensors")
    name = "blocks.0.attn.qkv.weight"
    torch.testing.assert_close(backbone.body.state_dict()[f"model.{name}"], weights[name])


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """Start a hub that closes each connection without an answer; return the list of its connections."""
    import huggingface_hub.constants as constants

    connections = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def refuse():
            with contextlib.suppress(OSError):  # the socket is closed at the end
                while True:
                    connection, _ = server.accept()
                    connections.append(connection.recv(100))
                    connection.close()

        threading.Thread(target=refuse, daemon=True).start()
        place = f"http://127.0.0.1:{server.getsockname()[1]}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", place)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        yield connections
        server.shutdown(socket.SHUT_RDWR)


def test_a_tag_that_timm_does_not_know_is_one_line():
    with pytest.raises(UserError, match="model.backbone = 'resnet50.nope': .*tag .*nope"):
        imagenet_file("resnet50.nope")


@pytest.mark.parametrize("name", ["resnet10t", "hf-hub:clinic/chest"])
def test_a_hub_out_of_reach_is_asked_once(hub, name):
    with pytest.raises(UserError, match=r"cannot be fetched \(ConnectionError\)"):
        imagenet_file(name) if name == "resnet10t" else resolve_backbone(name)
    (request,) = hub
    assert request.startswith(b"HEAD /")


@pytest.mark.parametrize(
    ("name", "listed", "leak"),
    [
        ("densenet121-res224-nih", None, True),
        ("chest_rsna_resnet50", None, True),
        ("ChestXray14-vit", None, True),
        ("technical", None, False),
        ("universal", None, False),
        ("universal", ["MIMIC-CXR", "NIH ChestX-ray14"], True),
        ("rsna", ["MIMIC-CXR"], False),  # the list is more exact than the name
    ],
)
def test_what_weights_have_seen(folder, name, listed, leak):
    place = folder.rename(folder.parent / name)
    config = {"architecture": "resnet10t"} | ({"trained_on": listed} if listed else {})
    (place / "config.json").write_text(json.dumps(config))
    assert saw_nih(resolve_backbone(f"local-dir:{place}").trained_on) is leak


def test_a_plain_name_stays():
    assert resolve_backbone("resnet18") == ("resnet18", None, ())


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("resnet1000", "not a timm model; similar names"),
        ("vit_small_patch32_224", "no features at stride 8; needs 8, 16 and 32, or patches of 16"),
    ],
)
def test_a_backbone_that_is_none(name, line):
    with pytest.raises(UserError, match=line):
        Backbone(name, "none", "group")


def test_a_backbone_of_one_image_size_is_refused_for_another():
    backbone = Backbone("swin_tiny_patch4_window7_224", "none", "group")
    with pytest.raises(UserError, match=r"takes no images of preprocess.image_size = 256: .*224"):
        backbone.require_size(256, 1)


@pytest.mark.parametrize("size", [128, 192])
def test_a_plain_transformer_has_a_simple_pyramid(size):
    torch.manual_seed(0)
    backbone = Backbone("vit_tiny_patch16_224", "none", "group")
    backbone.require_size(size, 1)
    features = backbone(torch.rand(2, 1, size, size))
    assert [tuple(level.shape) for level in features] == [
        (2, channels, size // stride, size // stride)
        for channels, stride in zip(backbone.channels, (8, 16, 32), strict=True)
    ]
    sum(level.square().mean() for level in features).backward()
    assert all(value.grad is not None for value in backbone.pyramid.parameters())
    backbone.freeze(1)
    frozen = [name for name, value in backbone.body.named_parameters() if not value.requires_grad]
    assert any("blocks.9." in name for name in frozen)
    assert not any("blocks.10." in name for name in frozen)
