"""The boxes of a data set as COCO's JSON."""

from pathlib import Path
from typing import Any

from pipeline.data.annotations import IMAGES, read_annotations
from pipeline.data.frontal import study_files
from pipeline.errors import UserError
from pipeline.files import write_json
from pipeline.sources.labelled import image_size

_ONE_CLASS = "lung opacity"


def export_labels(folder: Path, out: Path) -> str:
    """Write the studies and boxes of the data set in ``folder``; return their numbers in words.

    Raises:
        UserError: a table is malformed, a study is unusable, or its image is missing.
    """
    annotations = read_annotations(folder)
    for key, reason in annotations.problems.items():
        raise UserError(f"{folder}: {key}: {reason}")
    ids = annotations.studies["patientId"].to_list()
    images: list[dict[str, Any]] = []
    boxes: list[dict[str, Any]] = []
    files = study_files(folder / IMAGES, ids)
    labelled = zip(files, annotations.boxes_of(ids), annotations.labels_of(ids), strict=True)
    for number, (path, own, labels) in enumerate(labelled, start=1):
        width, height = image_size(path)
        images.append({"id": number, "file_name": path.name, "width": width, "height": height})
        for box, label in zip(own.tolist(), labels.tolist(), strict=True):
            made = {"id": len(boxes) + 1, "image_id": number, "category_id": label + 1, "bbox": box}
            boxes.append({**made, "area": box[2] * box[3], "iscrowd": 0})
    names = [name or _ONE_CLASS for name in annotations.names]
    categories = [{"id": number, "name": name} for number, name in enumerate(names, start=1)]
    write_json(out, {"categories": categories, "images": images, "annotations": boxes})
    return f"{len(images)} images, {len(boxes)} boxes, {len(names)} classes"
