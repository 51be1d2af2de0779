"""`pneumoflow import --update`: corrected labels come back into the data set that they are of."""

import json
import shutil

import cv2
import pandas as pd
import pytest

from pipeline.data.annotations import CLASSES, IMAGES, LABELS, read_annotations
from pipeline.data.checks import check_dataset
from pipeline.data.label_changes import label_changes
from pipeline.data.parallel import Workers
from pipeline.errors import UserError
from pipeline.jobs.update_labels import update_labels


def coco(path, studies, size=128):
    """Write a COCO file: study -> its boxes, (x, y, width, height, name)."""
    names = sorted({box[4] for boxes in studies.values() for box in boxes} | {"lung opacity"})
    images = [{"id": n, "file_name": f"{key}.png", "width": size, "height": size} for n, key in enumerate(studies)]
    boxes = [
        {"id": 0, "image_id": n, "category_id": names.index(box[4]), "bbox": box[:4], "iscrowd": 0}
        for n, own in enumerate(studies.values())
        for box in own
    ]
    categories = [{"id": n, "name": name} for n, name in enumerate(names)]
    path.write_text(json.dumps({"images": images, "annotations": boxes, "categories": categories}))
    return path


@pytest.fixture
def targets(rsna):
    table = pd.read_csv(rsna / LABELS).drop_duplicates("patientId")
    return {value: table["patientId"][table["Target"] == value].to_list() for value in (0, 1)}


def test_only_the_studies_of_the_source_change(rsna, targets, tmp_path):
    before, lines = read_annotations(rsna), (rsna / LABELS).read_text().splitlines()
    positive, negative = targets[1][0], targets[0][0]
    said = update_labels(
        coco(tmp_path / "c.json", {positive: [], negative: [(1, 2, 30, 40.5, "lung opacity")]}), rsna, "coco"
    )
    after = read_annotations(rsna)
    kinds = {(one.study, one.kind) for one in label_changes(before, after)}
    assert kinds == {(positive, "removed"), (negative, "added")}
    assert "2 studies, 1 of them with 1 boxes" in said
    assert "rows of the class table that follow a changed Target: 2" in said
    kept = [line for line in lines if not line.startswith((positive, negative))]
    text = (rsna / LABELS).read_text().splitlines()
    assert [line for line in text if not line.startswith((positive, negative))] == kept
    assert f"{negative},1,2,30,40.5,1" in text
    assert f"{positive},,,,,0" in text
    assert check_dataset(rsna, Workers(1), 60).problems == {}
    classes = pd.read_csv(rsna / CLASSES).drop_duplicates("patientId").set_index("patientId")["class"]
    assert (classes[negative], classes[positive]) == ("Lung Opacity", "No Lung Opacity / Not Normal")


def test_an_image_without_a_label_gets_one(rsna, targets, tmp_path):
    shutil.copy(rsna / IMAGES / f"{targets[0][0]}.dcm", rsna / IMAGES / "later.dcm")
    update_labels(coco(tmp_path / "c.json", {"later": [(1, 2, 30, 40, "lung opacity")]}), rsna, "auto")
    assert (rsna / LABELS).read_text().splitlines()[-1] == "later,1,2,30,40,1"


def test_a_study_in_a_folder_of_its_own_goes_by_its_id(rsna, targets, tmp_path):
    key = targets[0][0]
    (rsna / IMAGES / key).mkdir()
    (rsna / IMAGES / f"{key}.dcm").rename(rsna / IMAGES / key / "IM1")
    update_labels(coco(tmp_path / "c.json", {key: [(1, 2, 30, 40, "lung opacity")]}), rsna, "coco")
    assert read_annotations(rsna).boxes_of([key])[0].tolist() == [[1, 2, 30, 40]]


def test_readers_get_a_column(rsna, targets, tmp_path):
    rectangle = {"type": "rectanglelabels", "value": {"x": 10, "y": 10, "width": 50, "height": 50, "rotation": 0,
                                                      "rectanglelabels": ["lung opacity"]}}  # fmt: skip
    task = {"data": {"image": f"/data/local-files/?d=images/{targets[0][0]}.png"},
            "annotations": [{"completed_by": who, "result": [rectangle]} for who in (3, 5)]}  # fmt: skip
    (tmp_path / "export.json").write_text(json.dumps([task]))
    update_labels(tmp_path / "export.json", rsna, "auto")
    table = pd.read_csv(rsna / LABELS, dtype=str).set_index("patientId")
    assert table.loc[targets[0][0], "reader"].to_list() == ["3", "5"]
    assert table["reader"].notna().sum() == 2


@pytest.mark.parametrize(
    ("studies", "table", "message"),
    [
        ({"elsewhere": []}, None, "'elsewhere.png': no such file"),
        ({"first": [(1, 2, 30, 40, "mass"), (50, 60, 30, 40, "nodule")]}, None, "has no column 'class', but the boxes"),
        ({"first": []}, "patientId,x,y,width,height,Target,note\nfirst,,,,,0,seen\n", "column 'note': would be lost"),
        ({"first": [(100, 100, 90, 40, "mass")]}, None, "reaches outside the image of 128 x 128"),
    ],
)
def test_what_cannot_be_kept_changes_nothing(rsna, targets, tmp_path, studies, table, message):
    studies = {targets[0][0] if key == "first" else key: boxes for key, boxes in studies.items()}
    if table:
        (rsna / LABELS).write_text(table)
    before = {path: path.read_bytes() for path in rsna.glob("*.csv")}
    with pytest.raises(UserError, match=message):
        update_labels(coco(tmp_path / "c.json", studies), rsna, "coco")
    assert {path: path.read_bytes() for path in rsna.glob("*.csv")} == before


@pytest.mark.parametrize("change", ["column", "packed"])
def test_a_class_table_that_would_lose_something_changes_nothing(rsna, targets, tmp_path, change):
    path, labels = rsna / CLASSES, (rsna / LABELS).read_bytes()
    if change == "column":
        pd.read_csv(path).assign(note="x").to_csv(path, index=False)
    else:
        pd.read_csv(path).to_csv(path.with_name(f"{CLASSES}.gz"), index=False)
        path.unlink()
    source = coco(tmp_path / "c.json", {targets[1][0]: []})
    with pytest.raises(UserError, match={"column": "'note': would be lost", "packed": "unpack the table"}[change]):
        update_labels(source, rsna, "coco")
    assert (rsna / LABELS).read_bytes() == labels


def test_the_command_says_what_keeps_the_new_version(rsna, targets, run, tmp_path):
    source = coco(tmp_path / "c.json", {targets[0][0]: []})
    done = run("pipeline.cli", "import", source, rsna, "--update")
    assert done.returncode == 0, done.stderr
    assert f"`dvc add {rsna}` keeps it as a new version" in done.stdout
    assert run("pipeline.cli", "import", source, rsna, "--update", "--unlabelled").returncode == 2


def test_pictures_of_the_data_set_are_found_by_their_names(rsna, targets, tmp_path):
    for path in (rsna / IMAGES).glob("*.dcm"):
        path.unlink()
        cv2.imwrite(str(path.with_suffix(".png")), cv2.UMat(128, 128, cv2.CV_8U).get())
    update_labels(coco(tmp_path / "c.json", {targets[0][0]: [(1, 2, 3, 4, "lung opacity")]}), rsna, "coco")
    assert read_annotations(rsna).boxes_of(targets[0][:1])[0].tolist() == [[1, 2, 3, 4]]
