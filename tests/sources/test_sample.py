import numpy as np
import pandas as pd
import pydicom
import pytest
from pydicom.uid import JPEGBaseline8Bit

from pipeline.data.annotations import BOX, CLASSES, GROUPS, IMAGES, LABELS, read_annotations
from pipeline.errors import UserError
from pipeline.sources.sample import draw_boxes, make_sample


def make(out, **changes):
    arguments = {"studies": 12, "size": 128, "seed": 3, "opacity_fraction": 0.5, "labels": None, "workers": 1}
    return make_sample(out, **(arguments | changes))


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_headers_are_those_of_the_challenge(sample):
    headers = [pydicom.dcmread(path) for path in (sample / IMAGES).glob("*.dcm")]
    ages = [str(header.PatientAge) for header in headers]
    assert len(headers) == 60
    for header in headers:
        assert header.file_meta.TransferSyntaxUID == JPEGBaseline8Bit
        assert (header.BitsStored, header.Modality, header.ConversionType) == (8, "CR", "WSD")
        assert header.PhotometricInterpretation == "MONOCHROME2"
        assert header.ViewPosition in ("AP", "PA")
    assert all(age.isdigit() for age in ages)


def test_the_same_arguments_make_the_same_bytes(tmp_path):
    make(tmp_path / "a")
    make(tmp_path / "b", workers=2)
    make(tmp_path / "c", seed=4)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert contents(tmp_path / "a").keys() != contents(tmp_path / "c").keys()


def test_tables_are_whole(sample):
    labels, classes = pd.read_csv(sample / LABELS), pd.read_csv(sample / CLASSES)
    groups = pd.read_csv(sample / GROUPS)
    assert len(labels) == len(classes)
    assert set(labels["patientId"]) == set(groups["patientId"]) == {path.stem for path in (sample / IMAGES).iterdir()}
    assert groups["groupId"].nunique() < len(groups)
    boxes = labels[labels["Target"] == 1][BOX]
    assert (boxes == boxes.round()).all().all()
    assert (boxes[["x", "y"]] >= 0).all().all()
    assert (boxes["x"] + boxes["width"] <= 128).all()
    assert (boxes["y"] + boxes["height"] <= 128).all()


def test_boxes_follow_the_challenges_figures():
    rng = np.random.default_rng(0)
    drawn = [draw_boxes(1024, rng) for _ in range(4000)]
    boxes = np.concatenate(drawn)
    root = np.sqrt(boxes[:, 2] * boxes[:, 3])
    np.testing.assert_allclose(np.percentile(root, [5, 25, 50, 75, 95]), [131, 194, 255, 326, 425], rtol=0.04)
    assert abs(boxes[:, 2].mean() - 218) < 12
    assert abs(boxes[:, 3].mean() - 329) < 20
    assert abs(np.median(boxes[:, 3] / boxes[:, 2]) - 1.4) < 0.07
    centre = (boxes[:, :2] + boxes[:, 2:] / 2) / 1024
    np.testing.assert_allclose(
        np.percentile(centre[:, 0], [5, 25, 50, 75, 95]), [0.23, 0.31, 0.41, 0.69, 0.77], atol=0.05
    )
    np.testing.assert_allclose(
        np.percentile(centre[:, 1], [5, 25, 50, 75, 95]), [0.33, 0.44, 0.52, 0.59, 0.70], atol=0.03
    )
    assert abs((centre[:, 0] > 0.5).mean() - 0.46) < 0.04
    counts = np.bincount([len(one) for one in drawn], minlength=5)[1:5] / 4000
    np.testing.assert_allclose(counts, np.array([2614, 3266, 119, 13]) / 6012, atol=0.03)


def test_an_opacity_is_brighter_than_its_surroundings(tmp_path):
    """Without visible opacities, a model would have nothing to learn."""
    make(tmp_path / "s", studies=80, opacity_fraction=1.0)
    found = read_annotations(tmp_path / "s")
    from pipeline.dicom.radiograph import read_radiograph

    brighter = []
    for key, boxes in zip(
        found.studies["patientId"], found.boxes_of(found.studies["patientId"].to_list()), strict=True
    ):
        pixels = read_radiograph(tmp_path / "s" / IMAGES / f"{key}.dcm").pixels.astype(float)
        for x, y, width, height in boxes.astype(int):
            mirrored = pixels[:, ::-1][y : y + height, x : x + width]
            brighter.append(pixels[y : y + height, x : x + width].mean() - mirrored.mean())
    assert np.mean(brighter) > 3


def test_renders_pixels_for_given_labels(tmp_path, sample):
    made = make(tmp_path / "s", labels=sample / LABELS, size=256)
    again, given = read_annotations(tmp_path / "s"), read_annotations(sample)
    assert made == 60
    pd.testing.assert_frame_equal(again.studies, given.studies)
    np.testing.assert_allclose(again.boxes[BOX], given.boxes[BOX] / 4, atol=0.51)


def test_a_folder_with_contents_is_left_alone(tmp_path):
    (tmp_path / "s").mkdir()
    (tmp_path / "s/mine").write_text("x")
    with pytest.raises(UserError, match="has contents"):
        make(tmp_path / "s")
    assert contents(tmp_path) == {(tmp_path / "s/mine").relative_to(tmp_path): b"x"}
