"""The checks of a model's folder: nothing in it is trusted unchecked."""

import json
import struct

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.delivery.export import export_model
from pipeline.delivery.model_file import load_model, save_model
from pipeline.delivery.predictor import Predictor
from pipeline.delivery.seen_patients import load_seen, save_seen
from pipeline.errors import UserError
from pipeline.metrics.calibration import ScoreMap

LINE = {"slope": 2.0, "intercept": 1.0}
MAPS = {"box": LINE, "image": LINE, "no_box": 0.1}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda config: config.clear(), "model.json: format_version is missing"),
        (lambda config: config.update(format_version=2), "format_version = 2"),
        (lambda config: config.update(classes=[]), "classes = "),
        (lambda config: config.update(classes=["a", "b"]), "num_classes 1, but 2 classes"),
        (lambda config: config.update(classes=["\x1b[31m"]), "classes.0 = "),
        (lambda config: config.update(more=1), "more = 1: unknown key"),
        (lambda config: config.update({"\x1b[31m": 1}), r"\\x1b\[31m = 1: unknown key"),
        (lambda config: config["architecture"].update(anchors=9), "architecture.anchors = 9: unknown key"),
        (lambda config: config["preprocessing"].update(size=9), "preprocessing.size = 9: unknown key"),
        (lambda config: config["postprocessing"].update(nms=9), "postprocessing.nms = 9: unknown key"),
        (lambda config: config["preprocessing"].update(channels=["clahe", "raw"]), "in_channels 1, but .* gives 2"),
        (lambda config: config["architecture"].update(in_channels=2), "in_channels 2, but .* gives 1"),
        (lambda config: config["architecture"].update(num_classes=0), "num_classes = 0"),
        (lambda config: config["architecture"].update(image_classes=10**9), "image_classes = 1000000000"),
        (lambda config: config["architecture"].update(backbone="resnet_none"), "architecture.backbone = 'resnet_none'"),
        (lambda config: config["architecture"].update(backbone="vit_small_patch32_224"), "backbone = 'vit_small"),
        (lambda config: config["architecture"].update(backbone="vit_tiny_patch16_224"), "not of model.json beside it"),
        (lambda config: config["architecture"].update(backbone="hf-hub:a/b"), "architecture.backbone = 'hf-hub:a/b'"),
        (lambda config: config["architecture"].update(backbone="local-dir:/etc"), "architecture.backbone = 'local-dir"),
        (lambda config: config.update(ensemble={"members": 1, "fusion_thresh": 0.5}), "ensemble.members = 1"),
        (lambda config: config.update(ensemble={"members": 3, "fusion_thresh": 0.5}), "members.0.* is missing"),
        (
            lambda config: config.update(calibration=MAPS | {"box": LINE | {"slope": 0.0}}),
            "calibration.box.slope = 0.0",
        ),
        (lambda config: config.update(calibration=MAPS | {"no_box": 2.0}), "calibration.no_box = 2.0"),
        (lambda config: config["architecture"].update(head_convs=2), "not of model.json beside it: class_head"),
        (lambda config: config["architecture"].update(mask_head=True), "mask_head.* is missing"),
        (lambda config: config["architecture"]["anchor_shapes"].pop(), "class_head.last.weight is .* must be"),
        (lambda config: config["postprocessing"].update(score_gate=True), "score_gate needs the image-level head"),
        (lambda config: config.update(best_epoch=-1), "best_epoch = -1"),
        (lambda config: config.update(val_map=float("nan")), "NaN is not a finite number"),
    ],
)
def test_a_configuration_out_of_bounds_is_refused(tiny_model, write_config, change, message):
    with pytest.raises(UserError, match=message) as caught:
        load_model(write_config(tiny_model, change))
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("text", ["[]", "null", "3", '{"a": 1, "a": 2}', "[" * 100_000, "\xff", " " * 300_000])
def test_what_is_no_configuration_is_refused(tiny_model, text):
    (tiny_model / "model.json").write_text(text, encoding="latin-1")
    with pytest.raises(UserError, match=r"model\.json: "):
        load_model(tiny_model)


def spoil(tensors, name, value):
    tensors[name].view(-1)[tensors[name].numel() // 2] = value


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_one_value_that_is_not_finite_is_found_wherever_it_is(tiny_model, value):
    whole = load_file(tiny_model / "model.safetensors")
    # Every third tensor, and different ones for each value: all kinds of layers are among them.
    for name in list(whole)[{"nan": 0, "inf": 1, "-inf": 2}[str(value)] :: 3]:
        spoilt = {key: tensor.clone() for key, tensor in whole.items()}
        spoil(spoilt, name, value)
        save_file(spoilt, tiny_model / "model.safetensors")
        with pytest.raises(UserError) as caught:
            load_model(tiny_model)
        assert f"model.safetensors: {name} has 1 of " in str(caught.value)


def test_large_weights_whose_sum_overflows_are_no_fault(tiny_model):
    weights = load_file(tiny_model / "model.safetensors")
    weights["fpn.inner_blocks.0.0.weight"].fill_(3e38)
    save_file(weights, tiny_model / "model.safetensors")
    load_model(tiny_model)


def rename(tensors):
    tensors["other"] = tensors.pop("class_head.last.bias")


def add(tensors):
    tensors["more"] = torch.zeros(3)


def reshape(tensors):
    tensors["class_head.last.bias"] = tensors["class_head.last.bias"][None].contiguous()


def halve(tensors):
    tensors["class_head.last.bias"] = tensors["class_head.last.bias"].half()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (rename, "class_head.last.bias .* is missing"),
        (add, "more is not in the model"),
        (reshape, r"class_head.last.bias is float32 \[1, 9\], must be float32 \[9\]"),
        (halve, r"class_head.last.bias is float16 \[9\], must be float32 \[9\]"),
    ],
)
def test_tensors_that_are_not_the_models(tiny_model, change, message):
    weights = load_file(tiny_model / "model.safetensors")
    change(weights)
    save_file(weights, tiny_model / "model.safetensors")
    with pytest.raises(UserError, match=message):
        load_model(tiny_model)


def header(values, contents=b""):
    text = json.dumps(values).encode() if not isinstance(values, bytes) else values
    return struct.pack("<Q", len(text)) + text + contents


ONE = {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}
DAMAGED = {
    "empty": b"",
    "short": b"\x01\x02",
    "header of an exabyte": struct.pack("<Q", 2**60) + b"{}",
    "header bomb": header({f"t{number}": ONE for number in range(30_000)}),
    "offsets beyond": header({"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}),
    "shape overflows": header({"a": {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 16]}}, bytes(16)),
    "overlap": header({"a": ONE, "b": ONE}, bytes(16)),
    "no JSON": header(b"{" * 100),
    "deep": header(b"[" * 100_000),
    "more at the end": header({"a": ONE}, bytes(99)),
    "unknown type": header({"a": {"dtype": "F7", "shape": [4], "data_offsets": [0, 16]}}, bytes(16)),
    "pickle": b"\x80\x04K\x01.",
}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
def test_damaged_weights_are_refused(tiny_model, content):
    (tiny_model / "model.safetensors").write_bytes(content)
    with pytest.raises(UserError, match=r"model\.safetensors: ") as caught:
        load_model(tiny_model)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999])
def test_truncated_weights_are_refused(tiny_model, share):
    path = tiny_model / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(UserError, match="damaged"):
        load_model(tiny_model)


def test_a_model_that_is_not_finite_is_not_written(tiny_model, tmp_path):
    model, config = load_model(tiny_model)
    with torch.no_grad():
        model.class_head.last.bias[3] = torch.nan
    with pytest.raises(UserError, match="not written: class_head.last.bias has 1 of 9"):
        save_model(tmp_path / "new", model, config)
    assert not (tmp_path / "new").exists()


def test_a_configuration_that_could_not_be_read_again_is_not_written(tiny_model, tmp_path):
    model, config = load_model(tiny_model)
    with pytest.raises(UserError, match="val_map"):
        save_model(tmp_path / "new", model, config.model_copy(update={"val_map": float("nan")}))
    assert not (tmp_path / "new").exists()


def overflow(folder):
    """Write finite weights whose outputs are not finite; return the folder."""
    weights = load_file(folder / "model.safetensors")
    weights["class_head.last.weight"].fill_(3e38)
    save_file(weights, folder / "model.safetensors")
    return folder


def test_outputs_that_are_not_finite_are_refused(tiny_model, tmp_path):
    images = [np.random.default_rng(0).integers(0, 255, (100, 120), np.uint8)] * 2
    assert len(Predictor(tiny_model).predict(images)) == 2
    predictor = Predictor(overflow(tiny_model))
    with pytest.raises(UserError, match=r"outputs of the model for a\.dcm, b\.dcm are not finite"):
        predictor.predict(images, names=["a.dcm", "b.dcm"])
    with pytest.raises(UserError, match="outputs of the model for image 1, image 2 of the batch are not finite"):
        predictor.predict(images)
    with pytest.raises(UserError, match="not finite"):
        export_model(tiny_model, tmp_path / "out", "torch")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "text", ["{}", '["x"]', "[1]", '["0123456789abcdef", "0123456789abcde"]', "[" * 99_999, "\xff"]
)
def test_a_damaged_list_of_seen_patients(tmp_path, text):
    save_seen(tmp_path, ["a", "b"])
    assert len(load_seen(tmp_path)) == 2
    (tmp_path / "seen.json").write_text(text, encoding="latin-1")
    with pytest.raises(UserError, match=r"seen\.json: "):
        load_seen(tmp_path)


def test_scores_in_use_are_calibrated(tiny_model, write_config):
    """The predictor's scores and the image's probability are those of the maps; the boxes and their order stay."""
    image = np.random.default_rng(0).integers(0, 256, (128, 128), dtype=np.uint8)
    (plain,) = Predictor(tiny_model).predict([image])
    write_config(tiny_model, lambda config: config.update(calibration=MAPS, operating_threshold=0.0))
    (found,) = Predictor(tiny_model).predict([image])
    line = ScoreMap(**LINE)
    assert len(plain.scores) > 1
    np.testing.assert_allclose(found.scores, line(plain.scores), rtol=1e-6)
    np.testing.assert_array_equal(found.boxes, plain.boxes)
    assert found.image_score == pytest.approx(float(line(line(plain.scores[:1]))[0]), rel=1e-6)
