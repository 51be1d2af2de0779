"""Import of labelled data sets: the same boxes in each format come to the same table; damage is one line."""

import json
import zipfile
from xml.etree import ElementTree as ET

import cv2
import numpy as np
import pandas as pd
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pycocotools.coco import COCO

from pipeline.data.annotations import BOX, IMAGES, LABELS, read_annotations
from pipeline.data.checks import check_dataset
from pipeline.data.parallel import Workers
from pipeline.errors import UserError
from pipeline.jobs.export_labels import export_labels
from pipeline.jobs.import_data import import_data

SIZES = {"a": (200, 100), "b": (64, 80), "c": (128, 128)}  # width, height
BOXES = {"a": [(10, 20, 50, 40, "Nodule"), (100, 5, 80, 90, "Effusion")], "b": [(0, 0, 64, 80, "Nodule")], "c": []}
NAMES = ["Effusion", "Nodule"]


@pytest.fixture
def source(tmp_path):
    """Make a folder of three PNG images."""
    folder = tmp_path / "source"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name, (width, height) in SIZES.items():
        cv2.imwrite(str(folder / f"{name}.png"), rng.integers(0, 256, (height, width), np.uint8))
    return folder


def coco(folder):
    images = [{"id": f"i{n}", "file_name": f"{name}.png", "width": w, "height": h}
              for n, (name, (w, h)) in enumerate(SIZES.items())]  # fmt: skip
    boxes = [{"image_id": f"i{n}", "category_id": 5 + NAMES.index(box[4]), "bbox": list(box[:4]), "iscrowd": 0}
             for n, own in enumerate(BOXES.values()) for box in own]  # fmt: skip
    content = {
        "images": images,
        "annotations": boxes,
        "categories": [{"id": 5 + n, "name": x} for n, x in enumerate(NAMES)],
    }
    (folder / "instances.json").write_text(json.dumps(content))
    return folder / "instances.json"


def yolo(folder):
    (folder / "data.yaml").write_text(yaml.safe_dump({"names": dict(enumerate(NAMES)), "path": "."}))
    for split, names in (("train", "ab"), ("test", "c")):
        for part in ("images", "labels"):
            (folder / part / split).mkdir(parents=True)
        for name in names:
            width, height = SIZES[name]
            lines = []
            for x, y, w, h, label in BOXES[name]:
                values = ((x + w / 2) / width, (y + h / 2) / height, w / width, h / height)
                lines.append(" ".join(map(repr, (NAMES.index(label), *values))))
            (folder / "labels" / split / f"{name}.txt").write_text("\n".join(lines))
            (folder / f"{name}.png").rename(folder / "images" / split / f"{name}.png")
    return folder


def voc(folder):
    for name, boxes in BOXES.items():
        root = ET.Element("annotation")
        ET.SubElement(root, "filename").text = f"{name}.png"
        for x, y, w, h, label in boxes:
            item = ET.SubElement(root, "object")
            ET.SubElement(item, "name").text = label
            frame = ET.SubElement(item, "bndbox")
            for corner, value in (("xmin", x), ("ymin", y), ("xmax", x + w), ("ymax", y + h)):
                ET.SubElement(frame, corner).text = str(value)
        ET.ElementTree(root).write(folder / f"{name}.xml")
    return folder


def vindr(folder):
    rows = [(name, "R1", label, x, y, x + w, y + h) for name, own in BOXES.items() for x, y, w, h, label in own]
    rows.append(("c", "R2", "No finding", "", "", "", ""))
    columns = ["image_id", "rad_id", "class_name", "x_min", "y_min", "x_max", "y_max"]
    pd.DataFrame(rows, columns=columns).to_csv(folder / "train.csv", index=False)
    return folder / "train.csv"


def nih(folder):
    lines = ["Image Index,Finding Label,Bbox [x,y,w,h],,,"]
    lines += [f"{name}.png,{label},{x},{y},{w},{h},,," for name, own in BOXES.items() for x, y, w, h, label in own]
    (folder / "BBox_List_2017.csv").write_text("\n".join(lines) + "\n")
    header = "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position"
    facts = ["a.png,Nodule|Effusion,0,7,058,M,PA", "b.png,Nodule,1,7,058,M,AP", "c.png,No Finding,0,8,041Y,F,PA"]
    (folder / "Data_Entry_2017.csv").write_text("\n".join([header, *facts, "z.png,Hernia,0,9,050,F,PA"]) + "\n")
    (folder / "test_list.txt").write_text("c.png\n")
    return folder


def labelstudio(folder):
    tasks = []
    for name, boxes in BOXES.items():
        width, height = SIZES[name]
        result = [{"type": "rectanglelabels", "original_width": width, "original_height": height,
                   "value": {"x": 100 * x / width, "y": 100 * y / height, "width": 100 * w / width,
                             "height": 100 * h / height, "rotation": 0, "rectanglelabels": [label]}}
                  for x, y, w, h, label in boxes]  # fmt: skip
        annotations = [{"completed_by": 1, "result": result}, {"was_cancelled": True, "result": []}]
        tasks.append({"data": {"image": f"/data/local-files/?d=set/{name}.png"}, "annotations": annotations})
    (folder / "export.json").write_text(json.dumps(tasks))
    return folder / "export.json"


def cvat(folder):
    root = ET.Element("annotations")
    for name, boxes in BOXES.items():
        entry = ET.SubElement(root, "image", name=f"{name}.png")
        for x, y, w, h, label in boxes:
            ET.SubElement(entry, "box", label=label, xtl=str(x), ytl=str(y), xbr=str(x + w), ybr=str(y + h))
    ET.ElementTree(root).write(folder / "annotations.xml")
    return folder / "annotations.xml"


WRITERS = {write.__name__: write for write in (coco, yolo, voc, vindr, nih, labelstudio, cvat)}


def boxes_in(folder):
    table = pd.read_csv(folder / LABELS, dtype={"patientId": str})
    found = {key: [] for key in dict.fromkeys(table["patientId"])}
    for row in table[table["Target"] == 1].itertuples():
        found[row.patientId].append((*(round(float(getattr(row, side)), 4) for side in BOX), row[7]))
    return found


def in_order(boxes):
    return {key: sorted(tuple(map(str, (*map(float, box[:4]), box[4]))) for box in own) for key, own in boxes.items()}


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("asked", ["auto", "named"])
def test_each_format_gives_the_same_boxes(source, tmp_path, kind, asked):
    written = WRITERS[kind](source)
    out = tmp_path / "out"
    said = import_data(written, out, "auto" if asked == "auto" else kind, source)
    assert in_order(boxes_in(out)) == in_order(BOXES)
    assert "3 studies, 2 of them with 3 boxes" in said
    assert "  Effusion: 1\n  Nodule: 2" in said
    examined = check_dataset(out, Workers(1), 60)
    assert examined.problems == {}
    assert examined.annotations.names == ("Effusion", "Nodule")
    again = tmp_path / "again"
    import_data(written, again, kind, source)
    assert (again / LABELS).read_bytes() == (out / LABELS).read_bytes()


def test_what_a_format_knows_besides_boxes_is_kept(source, tmp_path):
    import_data(nih(source), tmp_path / "nih", "nih")
    rows = check_dataset(tmp_path / "nih", Workers(1), 60).rows.set_index("patientId")
    assert rows.loc[["a", "b", "c"], "groupId"].to_list() == ["7", "7", "8"]
    assert rows.loc[["a", "b", "c"], "view"].to_list() == ["PA", "AP", "PA"]
    assert rows.loc["c", ["sex", "age", "split"]].to_list() == ["F", 41.0, "test"]


def test_the_folders_of_yolo_are_its_split(source, tmp_path):
    import_data(yolo(source), tmp_path / "out", "auto")
    given = pd.read_csv(tmp_path / "out/splits.csv").set_index("patientId")["split"].to_dict()
    assert given == {"a": "train", "b": "train", "c": "test"}


def test_readers_are_kept_apart_in_the_table(source, tmp_path):
    file = vindr(source)
    table = pd.read_csv(file)
    second = table[table["image_id"] == "b"].assign(rad_id="R3", x_max=60)
    pd.concat([table, second]).to_csv(file, index=False)
    import_data(file, tmp_path / "out", "vindr")
    found = pd.read_csv(tmp_path / "out" / LABELS)
    assert found[found["patientId"] == "b"]["reader"].to_list() == ["R1", "R3"]


def test_what_is_changed_or_left_out_is_counted(source, tmp_path):
    file = coco(source)
    content = json.loads(file.read_text())
    content["annotations"][0] |= {"segmentation": [[1, 2, 3, 4]], "score": 0.9}
    content["annotations"][2]["bbox"] = [-0.4, 0, 64.9, 80]
    content["annotations"] += [content["annotations"][1], {**content["annotations"][1], "iscrowd": 1}]
    file.write_text(json.dumps(content))
    said = import_data(file, tmp_path / "out", "coco", without_boxes=False)
    for line in ("polygons taken as the boxes around them: 1", "boxes that are there twice kept once: 1",
                 "crowd regions left out: 1", "scores of predictions left out: 1", "images without a box left out: 1",
                 "boxes cut at the image's edge, by at most 1 pixel: 1"):  # fmt: skip
        assert line in said
    assert boxes_in(tmp_path / "out").keys() == {"a", "b"}


def test_images_without_labels_are_negatives_only_if_asked(source, tmp_path):
    folder = yolo(source)
    (folder / "labels/test/c.txt").unlink()
    assert "images that the labels do not mention left out: 1" in import_data(folder, tmp_path / "without", "yolo")
    said = import_data(folder, tmp_path / "with", "yolo", unlabelled=True)
    assert "images that the labels do not mention kept as negatives: 1" in said
    assert boxes_in(tmp_path / "with")["c"] == []


def test_names_become_ids_and_never_paths(source, tmp_path):
    (source / "a.png").rename(source / "a (1) é.png")
    file = coco(source)
    file.write_text(file.read_text().replace("a.png", "../../a (1) \\u00e9.png"))
    said = import_data(file, tmp_path / "out", "coco")
    assert "names changed, because an id has letters" in said
    assert sorted(path.name for path in (tmp_path / "out" / IMAGES).iterdir()) == ["a_1.png", "b.png", "c.png"]


DAMAGE = {
    "no categories": (coco, lambda text: text.replace('"categories"', '"kinds"'), "categories: must be a list"),
    "unknown image": (
        coco,
        lambda text: text.replace('"image_id": "i1"', '"image_id": 9'),
        r"annotations\[2\]: image_id '9'",
    ),
    "unknown category": (
        coco,
        lambda text: text.replace('"category_id": 5', '"category_id": 1'),
        "category_id '1': no cat",
    ),
    "no file": (coco, lambda text: text.replace("b.png", "../d.png"), r"images\[1\]: image '../d.png': no such file"),
    "twice": (coco, lambda text: text.replace("b.png", "a.png"), r"images\[1\]: file_name 'a.png' occurs twice"),
    "id twice": (coco, lambda text: text.replace('"id": "i1"', '"id": "i0"'), "id 'i0' occurs twice"),
    "outside": (coco, lambda text: text.replace("[0, 0, 64, 80]", "[0, 0, 64, 90]"), "outside the image of 64 x 80"),
    "no area": (coco, lambda text: text.replace("[0, 0, 64, 80]", "[0, 0, 64, 0]"), "must be above 0"),
    "no number": (coco, lambda text: text.replace("[0, 0, 64, 80]", '[0, 0, "x", 80]'), "bbox = 'x': must be a number"),
    "three": (coco, lambda text: text.replace("[0, 0, 64, 80]", "[0, 0, 64]"), r"must be \[x, y, width, height\]"),
    "cut": (coco, lambda text: text[:-9], "not JSON"),
    "rotated": (labelstudio, lambda text: text.replace('"rotation": 0', '"rotation": 7'), "boxes must be upright"),
    "resized": (
        labelstudio,
        lambda text: text.replace('"original_width": 64', '"original_width": 65'),
        "the image has 64",
    ),
    "image twice": (cvat, lambda text: text.replace("c.png", "a.png"), "image a.png: occurs twice"),
    "task twice": (labelstudio, lambda text: text.replace("c.png", "a.png"), "task 3: another task has the same image"),
    "doctype": (cvat, lambda text: "<!DOCTYPE a [<!ENTITY b 'c'>]>" + text, "declares a document type"),
    "no label": (cvat, lambda text: text.replace('label="Effusion" ', ""), "image a.png: shape 2: has no label"),
    "finding": (
        vindr,
        lambda text: text.replace("No finding", "Mass"),
        "line 5: class_name 'Mass': needs four numbers",
    ),
    "corner": (vindr, lambda text: text.replace("0,0,64,80", "0,0,640,80"), "line 4: box 0 0 640 80 .* outside"),
}


@pytest.mark.parametrize(("write", "damage", "rule"), DAMAGE.values(), ids=DAMAGE)
def test_damage_is_one_line_and_nothing_is_left(source, tmp_path, write, damage, rule):
    file = write(source)
    before = file.read_text()
    file.write_text(damage(before))
    assert file.read_text() != before
    with pytest.raises(UserError, match=rule) as error:
        import_data(file, tmp_path / "out", write.__name__)
    assert "\n" not in str(error.value)
    assert str(file) in str(error.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("line", "rule"),
    [
        ("0 50 40 20 10", "coordinate 50: must be a fraction"),
        ("7 .5 .5 .1 .1", "class '7': the names go from 0 to 1"),
        ("0 .5 .5 .1", "4 values"),
        ("0 .9 .5 .6 .1", "outside the image of 64 x 80"),
    ],
)
def test_damaged_lines_of_yolo(source, tmp_path, line, rule):
    folder = yolo(source)
    (folder / "labels/train/b.txt").write_text(f"\n{line}\n")
    with pytest.raises(UserError, match=rf"b.txt line 2: .*{rule}"):
        import_data(folder, tmp_path / "out", "yolo")


def test_sources_that_are_none(source, tmp_path):
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        archive.writestr("a", "b")
    for wrong, rule in ((tmp_path / "set.zip", "an archive; unpack it"), (tmp_path / "gone", "no such file or folder"),
                        (source, "has none of the formats coco, yolo")):  # fmt: skip
        with pytest.raises(UserError, match=rule):
            import_data(wrong, tmp_path / "out", "auto")
    coco(source), cvat(source)
    with pytest.raises(UserError, match="may be coco or cvat; --format"):
        import_data(source, tmp_path / "out", "auto")
    with pytest.raises(UserError, match="--format xyz: must be auto or one of"):
        import_data(source, tmp_path / "out", "xyz")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/x").write_text("x")
    with pytest.raises(UserError, match="has contents"):
        import_data(source / "instances.json", tmp_path / "full", "coco")


side = st.integers(1, 60)
drawn = st.lists(
    st.tuples(st.integers(0, 60), st.integers(0, 60), side, side, st.sampled_from(["x", "Y z", "w/v"])), max_size=4
)


@given(st.lists(drawn, min_size=1, max_size=3))
def test_exported_labels_come_back_unchanged(tmp_path_factory, sets):
    folder = tmp_path_factory.mktemp("round")
    (folder / "in" / IMAGES).mkdir(parents=True)
    rows = []
    for number, boxes in enumerate(sets):
        image = np.random.default_rng(number).integers(0, 256, (128, 128), np.uint8)
        cv2.imwrite(str(folder / "in" / IMAGES / f"s{number}.png"), image)
        unique = list(dict.fromkeys(boxes))
        rows += [(f"s{number}", *box[:4], 1, box[4]) for box in unique] or [(f"s{number}", "", "", "", "", 0, "")]
    pd.DataFrame(rows, columns=["patientId", *BOX, "Target", "class"]).to_csv(folder / "in" / LABELS, index=False)
    export_labels(folder / "in", folder / "labels.json")
    assert len(COCO(str(folder / "labels.json")).anns) == sum(row[5] for row in rows)
    import_data(folder / "labels.json", folder / "out", "coco", folder / "in")
    before, after = read_annotations(folder / "in"), read_annotations(folder / "out")
    pd.testing.assert_frame_equal(after.studies, before.studies)
    pd.testing.assert_frame_equal(after.boxes, before.boxes)
    assert after.names == before.names
    import_data(folder / "out", folder / "again", "rsna")
    pd.testing.assert_frame_equal(read_annotations(folder / "again").boxes, before.boxes)


def test_the_commands(source, tmp_path, run, one_line_error):
    coco(source)
    done = run("pipeline.cli", "import", source, tmp_path / "out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "3 studies, 2 of them with 3 boxes" in done.stdout
    done = run("pipeline.cli", "export-labels", tmp_path / "out", tmp_path / "labels.json", cwd=tmp_path)
    assert done.stdout.strip().endswith("labels.json: 3 images, 3 boxes, 2 classes")
    one_line_error(run("pipeline.cli", "import", tmp_path / "gone", tmp_path / "x", cwd=tmp_path), "gone: no such file")
