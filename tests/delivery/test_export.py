"""Exports of the model to other runtimes."""

import json
import re
import shutil
import zipfile
from pathlib import Path

import numpy as np
import onnx
import openvino
import pytest

from pipeline.data.annotations import IMAGES
from pipeline.delivery.export import _differences, _pairs, compare_export, export_model
from pipeline.delivery.exported import image_by_image, load_export
from pipeline.dicom.radiograph import read_radiograph
from pipeline.errors import UserError
from pipeline.jobs.export_int8 import MAX_LOSS, export_int8
from pipeline.metrics.calibration import IDENTITY, Calibration, ScoreMap, calibrated_scores
from pipeline.metrics.results import image_result
from pipeline.params import load_params

pytestmark = pytest.mark.slow


@pytest.fixture
def models(trained, tmp_path):
    """Copy the model, with a threshold so low that there are boxes to compare, and with a box shrink."""
    folder = shutil.copytree(trained[0] / "models", tmp_path / "models")
    set_post_processing(folder, score_thresh=0.001, box_shrink=0.1, nms_thresh=0.3)
    return folder


def set_post_processing(folder, **values):
    config = json.loads((folder / "model.json").read_text())
    config["postprocessing"] |= values
    (folder / "model.json").write_text(json.dumps(config))


@pytest.mark.parametrize("suppression", ["nms", "soft_nms"])
@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=[pytest.mark.long] * (kind == "torch")) for kind in ("onnx", "torch")]
)
@pytest.mark.filterwarnings("ignore")  # warnings of the exporters
def test_an_export_finds_what_the_model_finds(models, sample, tmp_path, kind, suppression):
    """Compare on 50 radiographs: the same boxes to half a pixel, scores to .001."""
    set_post_processing(models, suppression=suppression)
    path = export_model(models, tmp_path / "out", kind)
    files = sorted((sample / IMAGES).glob("*.dcm"))[:50]
    images = [read_radiograph(file).pixels for file in files]
    found = compare_export(models, path, images)
    assert found.images == 50
    assert found.boxes < 0.5
    assert found.scores < 1e-3
    for one in load_export(path)(np.full((2, 1, 128, 128), 90, np.uint8)):
        assert len(one.boxes) == len(one.scores) > 0
    assert sorted(one.name for one in (tmp_path / "out").iterdir()) == ["check.json", "model.json", path.name]
    # A model that has changed since the export is not the exported one.
    set_post_processing(models, box_shrink=0.3)
    with pytest.raises(UserError, match=r"boxes differ by [\d.]+ pixels"):
        compare_export(models, path, images)


def test_the_order_of_nearly_equal_scores_does_not_matter():
    boxes = np.array([[0, 0, 10, 10], [50, 50, 90, 90], [20, 0, 30, 10], [0, 0, 11, 11]])
    own = image_result(boxes, [0.9, 0.5, 0.5 - 1e-7, 0.1], [], [0, 0, 0, 1])
    found = image_result(boxes[[0, 2, 1, 3]] + 0.1, [0.9, 0.5, 0.5 - 1e-7, 0.1], [], [0, 0, 0, 1])
    assert _pairs(found, own, own.scores).tolist() == [0, 2, 1, 3]
    # Neither another score nor another class is the same detection, however near its box is.
    found = image_result(boxes[[3, 1, 2, 0]], [0.9, 0.5, 0.5 - 1e-7, 0.1], [], [0, 0, 0, 1])
    assert _pairs(found, own, own.scores).tolist() == [0, 1, 2, 3]
    nothing = image_result([], [], [])
    assert _pairs(nothing, nothing, nothing.scores).tolist() == []


def test_the_networks_scores_decide_which_detections_an_export_must_have():
    """Two classes with other calibrations: of the model's four detections, the export may have two."""
    maps = [Calibration(box=ScoreMap(slope=1, intercept=shift), image=IDENTITY, no_box=0.01) for shift in (-2, 2)]
    boxes = np.array([[0, 0, 10, 10], [50, 50, 90, 90], [20, 0, 30, 10], [60, 0, 80, 11]])
    own = image_result(boxes, [0.9, 0.8, 0.7, 0.2], [], [0, 1, 1, 0])
    scores = calibrated_scores(own, maps)
    assert scores[1] > scores[2] > scores[0] > scores[3]  # the model's third detection would be the second
    right = image_result(boxes[[1, 0]], scores[[1, 0]], [], [1, 0])
    distances, difference = _differences(right, own, maps)
    assert distances.tolist() == [0, 0]
    assert difference < 1e-9
    missed = image_result(boxes[[1, 2]], scores[[1, 2]], [], [1, 1])
    assert _differences(missed, own, maps)[1] == pytest.approx(0.9 - 0.8)
    other = image_result(boxes[[1, 0]], scores[[1, 0]], [], [1, 1])
    assert _differences(other, own, maps)[0].tolist() == [0, np.inf]


@pytest.mark.filterwarnings("ignore")
def test_an_exported_program_has_no_pickle(models, tmp_path):
    path = export_model(models, tmp_path / "out", "torch")
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            start = archive.read(name)[:2]
            assert not re.match(rb"\x80[\x02-\x05]", start), name


def test_what_cannot_be_exported(models, tmp_path, run, one_line_error):
    set_post_processing(models, suppression="weighted_fusion")
    done = run("pipeline.cli", "export", models, "--out", tmp_path / "out")
    one_line_error(done, "postprocessing.suppression = 'weighted_fusion': only nms or soft_nms can be exported")
    one_line_error(run("pipeline.cli", "export", models, "--out", tmp_path / "out", "--format", "caffe"), "caffe")
    assert not (tmp_path / "out").exists()


@pytest.mark.filterwarnings("ignore")  # warnings of the exporter
def test_convolutions_in_8_bits_find_about_as_well(trained, tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO")
    monkeypatch.chdir(trained[0])
    params = load_params()
    path = export_int8(params, Path("models"), tmp_path / "out", "onnx")
    assert caplog.messages == []
    checked = json.loads((tmp_path / "out/check.json").read_text())
    assert 0 < checked["val_map"] <= checked["val_map_int8"] + MAX_LOSS
    graph = onnx.load(path).graph
    makers = {output: node.op_type for node in graph.node for output in node.output}
    convolutions = [node for node in graph.node if node.op_type == "Conv"]
    assert {makers[node.input[1]] for node in convolutions} == {"DequantizeLinear"}
    # The numbers of boxes and scores stay floats.
    assert {makers[one.name] for one in graph.output}.isdisjoint({"DequantizeLinear"})
    images = np.random.default_rng(0).integers(0, 256, (3, 1, 128, 128), np.uint8)
    assert [len(one.boxes) for one in load_export(path)(images)]
    monkeypatch.setattr("pipeline.jobs.export_int8.MAX_LOSS", -1.0)
    with pytest.raises(UserError, match="mAP on val is 0.* at most -1.0 less is allowed"):
        export_int8(params, Path("models"), tmp_path / "refused", "onnx")
    assert not (tmp_path / "refused").exists()


def test_8_bits_are_refused_where_they_cannot_be(trained, write_config, tmp_path, monkeypatch):
    monkeypatch.chdir(trained[0])
    params = load_params()
    with pytest.raises(UserError, match="--int8: must go with --format onnx or triton"):
        export_int8(params, Path("models"), tmp_path / "out", "torch")
    other = Path(shutil.copytree("models", tmp_path / "models"))
    write_config(other, lambda config: config["preprocessing"].update(clip_limit=1.5))
    with pytest.raises(UserError, match="made with other preprocess params"):
        export_int8(params, other, tmp_path / "out", "onnx")


@pytest.mark.filterwarnings("ignore")
def test_triton_and_openvino_take_the_graph(tiny_model, tmp_path):
    """The layout that Triton's documents describe, and its file in OpenVINO, for batches of 1, 3 and 8."""
    path = export_model(tiny_model, tmp_path / "out", "triton")
    assert path == tmp_path / "out/pneumoflow/1/model.onnx"
    assert sorted(one.name for one in path.parents[1].iterdir()) == ["1", "config.pbtxt", "model.json"]
    assert (path.parents[1] / "config.pbtxt").read_text() == (
        'name: "pneumoflow"\nplatform: "onnxruntime_onnx"\nmax_batch_size: 8\n'
        'input [ { name: "images" data_type: TYPE_UINT8 dims: [ 1, 128, 128 ] } ]\n'
        'output [ { name: "boxes" data_type: TYPE_FP32 dims: [ 20, 4 ] } ]\n'
        'output [ { name: "scores" data_type: TYPE_FP32 dims: [ 20 ] } ]\n'
        "dynamic_batching { }\n"
    )
    onnx = load_export(path)
    compiled = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})  # type: ignore[attr-defined]
    for size in (1, 3, 8):
        images = np.random.default_rng(size).integers(0, 256, (size, 1, 128, 128), np.uint8)
        found, wanted = compiled([images]), onnx(images)
        assert sum(len(one.scores) for one in wanted) > 0
        for own, other in zip(image_by_image([found[0], found[1]]), wanted, strict=True):
            np.testing.assert_allclose(own.boxes, other.boxes, atol=0.5)
            np.testing.assert_allclose(own.scores, other.scores, atol=1e-3)
