"""Findings of ``check`` and ``preprocess`` on data sets that are broken on purpose."""

import base64
import shutil
import subprocess
import sys

import cv2
import numpy as np
import pandas as pd
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.encaps import encapsulate
from pydicom.pixels import pixel_array

from pipeline.data.annotations import CLASSES, GROUPS, IMAGES, LABELS
from pipeline.data.checks import check_dataset
from pipeline.data.data_issues import RULES, by_rule
from pipeline.data.duplicates import clusters, perceptual_hash, same_files, similar_pairs
from pipeline.data.parallel import Workers
from pipeline.reports import data_page
from pipeline.reports.data_page import render_data_page

ONE = Workers(1)


def check(folder):
    return check_dataset(folder, ONE, 60)


def found(folder):
    """Return rule name -> studies."""
    return {rule.name: [case.study for case in cases] for rule, cases in by_rule(check(folder).issues).items()}


@pytest.fixture
def ids(rsna):
    return pd.read_csv(rsna / LABELS)["patientId"].drop_duplicates().to_list()


def rewrite(path, change):
    """Save a study again with other pixels."""
    dataset = pydicom.dcmread(path)
    pixels = change(pixel_array(dataset))
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.PixelData = encapsulate([cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, 85])[1].tobytes()])
    dataset.save_as(path)


def test_a_good_data_set_has_no_issues(rsna):
    assert found(rsna) == {}


def test_copies_are_found_and_stay_together(rsna, ids):
    images = rsna / IMAGES
    shutil.copy(images / f"{ids[3]}.dcm", images / f"{ids[40]}.dcm")
    shutil.copy(images / f"{ids[5]}.dcm", images / f"{ids[41]}.dcm")
    rewrite(images / f"{ids[41]}.dcm", lambda pixels: cv2.resize(pixels, (96, 96), interpolation=cv2.INTER_AREA))
    labels = pd.read_csv(rsna / LABELS, dtype=str, keep_default_na=False)
    # Boxes that were drawn for the replaced images need not fit the copies, so both are labelled without boxes.
    labels = labels[~labels["patientId"].isin([ids[40], ids[41]])]
    new = pd.DataFrame({"patientId": [ids[40], ids[41]], "Target": "0"})
    pd.concat([labels, new]).fillna("").to_csv(rsna / LABELS, index=False)
    (rsna / CLASSES).unlink()
    result = check(rsna)
    names = {rule.name: [case.study for case in cases] for rule, cases in by_rule(result.issues).items()}
    assert names["same_file"] == [ids[40]]
    assert names["similar_image"] == [ids[41]]
    targets = dict(zip(result.rows["patientId"], result.rows["target"], strict=True))
    wanted = [copy for one, copy in ((ids[3], ids[40]), (ids[5], ids[41])) if targets[one] != targets[copy]]
    assert names.get("copies_disagree", []) == wanted
    cluster = dict(zip(result.rows["patientId"], result.rows["cluster"], strict=True))
    assert cluster[ids[3]] == cluster[ids[40]]
    assert cluster[ids[5]] == cluster[ids[41]]
    assert result.problems == {}


def test_pixels_that_show_nothing(rsna, ids):
    images = rsna / IMAGES
    rewrite(images / f"{ids[0]}.dcm", np.zeros_like)
    rewrite(images / f"{ids[1]}.dcm", lambda pixels: pixels // 64 + 100)
    dataset = pydicom.dcmread(images / f"{ids[2]}.dcm")
    dataset.ViewPosition = ""
    dataset.save_as(images / f"{ids[2]}.dcm")
    result = check(rsna)
    assert result.problems == {ids[0]: "the file cannot be used: all pixels have one value"}
    names = {rule.name: [case.study for case in cases] for rule, cases in by_rule(result.issues).items()}
    assert names == {"readable": [ids[0]], "nearly_empty": [ids[1]], "view_known": [ids[2]]}


def test_tables_and_files(rsna, ids):
    (rsna / IMAGES / f"{ids[0]}.dcm").unlink()
    shutil.copy(rsna / IMAGES / f"{ids[1]}.dcm", rsna / IMAGES / "extra.dcm")
    classes = pd.read_csv(rsna / CLASSES)
    first = classes.index[classes["patientId"] == ids[2]][0]
    other = "Normal" if classes["class"][first] != "Normal" else "Lung Opacity"
    pd.concat([classes, pd.DataFrame({"patientId": [ids[2]], "class": [other]})]).to_csv(rsna / CLASSES, index=False)
    with (rsna / GROUPS).open("a") as file:
        file.write(f"{ids[3]},somebody-else\nnot-there,p1\n")
    names = found(rsna)
    assert names["image_there"] == [ids[0]]
    assert names["label_there"] == ["extra"]
    assert set(names["one_class"]) == {ids[2]}
    assert set(names["one_group"]) == {ids[3]}
    assert names["group_used"] == ["not-there"]


def test_every_rule_says_what_to_do():
    assert len(RULES) == len({rule.title for rule in RULES.values()})
    assert all(rule.advice and rule.title and name == rule.name for name, rule in RULES.items())


@settings(max_examples=30)
@given(st.integers(1, 40), st.integers(0, 2**32 - 1), st.integers(0, 40))
def test_similar_pairs_against_a_plain_loop(count, seed, distance):
    rng = np.random.default_rng(seed)
    base = rng.integers(0, 256, 32, dtype=np.uint8)
    # The hashes are near copies of one hash, so that there are pairs of every distance.
    bits = np.unpackbits(np.tile(base, (count, 1)), axis=1) ^ (rng.random((count, 256)) < rng.random() * 0.1)
    hashes = [np.packbits(row).tobytes().hex() for row in bits.astype(np.uint8)]
    wanted = [(i, j) for i in range(count) for j in range(i + 1, count) if int((bits[i] != bits[j]).sum()) <= distance]
    assert sorted(similar_pairs(hashes, distance)) == wanted


def test_similar_pairs_across_blocks():
    rng = np.random.default_rng(0)
    hashes = [rng.bytes(32).hex() for _ in range(1300)]
    hashes[1290], hashes[700] = hashes[3], hashes[640]
    assert similar_pairs(hashes) == [(3, 1290), (640, 700)]
    assert similar_pairs([]) == []


def test_a_hash_survives_what_copies_go_through(rsna):
    images = [pixel_array(pydicom.dcmread(path)) for path in sorted((rsna / IMAGES).iterdir())[:8]]
    for image in images:
        again = cv2.imdecode(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 40])[1], cv2.IMREAD_GRAYSCALE)
        large = cv2.resize(image, None, fx=2.5, fy=2.5, interpolation=cv2.INTER_CUBIC)
        for copy in (again, large, cv2.convertScaleAbs(image, alpha=0.9, beta=8)):
            assert similar_pairs([perceptual_hash(image), perceptual_hash(copy)]) == [(0, 1)]
    assert similar_pairs([perceptual_hash(image) for image in images]) == []


def test_same_files_and_clusters():
    assert same_files(["a", "b", "a", "c", "a"]) == [(0, 2), (0, 4)]
    assert clusters(["p2", "p1", "p3", "p3", "p4"], [(0, 2), (1, 3)]) == ["p1", "p1", "p1", "p1", "p4"]
    assert clusters(["x", "y"], []) == ["x", "y"]


def test_the_page_and_the_command(rsna, ids, run, tmp_path, one_line_error):
    (rsna / IMAGES / f"{ids[0]}.dcm").write_bytes(b"no DICOM")
    shutil.copy(rsna / IMAGES / f"{ids[3]}.dcm", rsna / IMAGES / f"{ids[40]}.dcm")
    done = run("pipeline.cli", "check", rsna, "--workers", "1", cwd=tmp_path)
    one_line_error(done, "1 unusable studies")
    assert f"  {ids[0]}: the file cannot be used" in done.stdout
    assert "warning: the same file under two names: 1; remove one of them" in done.stdout
    page = (tmp_path / "reports/data.html").read_text()
    for text in (ids[0], ids[40], "the same file under two names", "Lung Opacity", "data:image/jpeg", "polyline"):
        assert text in page
    assert "http" not in page.replace("http-equiv", "")
    result = check(rsna)
    assert render_data_page(result, 60) == page  # the same data give the same page


def test_boxes_are_drawn_and_charts_end_with_their_values(rsna):
    result = check(rsna)
    with_box = set(result.annotations.boxes["patientId"])
    pictures = {one.study: decoded(one.uri) for one in data_page._worst(result, 60)}
    assert {True, False} == {key in with_box for key in pictures}
    for key, picture in pictures.items():
        assert (
            np.ptp(picture.astype(int), axis=2).max() > 100 if key in with_box else np.ptp(picture, axis=2).max() < 40
        )
    bars = data_page._histogram(np.array([22.0, 41.0, 44.0, np.nan, 140.0]), np.arange(0, 101, 10))
    assert [(bar.label, bar.count) for bar in bars][:3] == [("20 to 30", 1), ("30 to 40", 0), ("40 to 50", 2)]
    assert bars[-1].label == "90 to 100"
    assert data_page._histogram(np.zeros(0), np.arange(0, 101, 10)) == []


def decoded(uri):
    return cv2.imdecode(np.frombuffer(base64.b64decode(uri.partition(",")[2]), np.uint8), cv2.IMREAD_COLOR)


def test_a_page_without_any_readable_study(rsna):
    for path in (rsna / IMAGES).iterdir():
        path.write_bytes(path.read_bytes()[:600])
    result = check(rsna)
    assert len(result.problems) == 60
    assert "the file cannot be used" in render_data_page(result, 60)


@pytest.mark.long
def test_nothing_of_the_patient_leaves_the_file(project, run, tmp_path):
    """No log, table, page, picture or database contains a name, a birth date or an address from the headers."""
    planted = {"PatientName": "Lovelace^Augusta", "PatientBirthDate": "18151210", "PatientAddress": "12 Saint James Sq"}
    for path in sorted((project / "data/rsna" / IMAGES).iterdir()):
        dataset = pydicom.dcmread(path)
        for keyword, value in planted.items():
            setattr(dataset, keyword, value)
        dataset.save_as(path)
    # Parsers quote values that they cannot use, so such values also hold the name and the date.
    dataset.add_new("WindowWidth", "LO", "Lovelace^Augusta")
    dataset.add_new("WindowCenter", "LO", "18151210x")
    dataset.add_new("BitsStored", "LO", "Lovelace^Augusta")
    dataset.save_as(path)
    subprocess.run([sys.executable, "-m", "dvc", "add", "-q", "data/rsna"], cwd=project, check=True)
    logs = []
    for stage in ("preprocess", "split", "train", "evaluate"):
        done = run(f"pipeline.stages.{stage}", cwd=project, MLFLOW_TRACKING_URI=f"sqlite:///{project}/mlflow.db")
        assert done.returncode == 0, done.stderr
        logs.append(done.stdout + done.stderr)
    done = run("pipeline.cli", "check", "data/rsna", cwd=project)
    done = run("pipeline.cli", "predict", "models", "data/rsna/" + IMAGES, "--out", "predictions", cwd=project)
    logs.append(done.stdout + done.stderr)
    assert len(pd.read_csv(project / "reports/quarantine.csv")) == 1
    written = [
        path
        for name in ("data/prepared", "data/splits.csv", "reports", "models", "mlruns", "mlflow.db", "predictions")
        for path in ([project / name] if (project / name).is_file() else (project / name).rglob("*"))
        if path.is_file()
    ]
    assert len(written) > 80
    for secret in (b"Lovelace", b"Augusta", b"18151210", b"Saint James"):
        assert not [path for path in written if secret in path.read_bytes()]
        assert secret.decode() not in "".join(logs)
