"""COCO's detection format: one JSON file with images, annotations and categories (cocodataset.org, "data format")."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.documents import read_json_object
from pipeline.errors import UserError
from pipeline.escaping import quoted
from pipeline.sources.labelled import Box, Images, Labelled, image_size, inside, number

_MAX_BYTES = 2**30


def read_coco(file: Path, images: Images) -> Labelled:
    """Read a COCO file; ids may be numbers or texts. Crowd regions are left out, and counted.

    Raises:
        UserError: the file is not of this format; the message names the entry, the value and the rule.
    """
    content = read_json_object(file, _MAX_BYTES)
    found = Labelled()
    names = {
        str(_get(one, "id", f"{file}: categories[{n}]")): str(_get(one, "name", f"{file}: categories[{n}]"))
        for n, one in enumerate(_list(content, "categories", file))
    }
    by_id = _images(content, file, images)
    found.images = list(by_id.values())
    sizes = {path: image_size(path) for path in found.images}
    for n, one in enumerate(_list(content, "annotations", file)):
        place = f"{file}: annotations[{n}]"
        box = _box(one, by_id, names, place)
        if one.get("iscrowd"):
            found.notes["crowd regions left out"] += 1
            continue
        if isinstance(one.get("segmentation"), list) and one["segmentation"]:
            found.notes["polygons taken as the boxes around them"] += 1
        if "score" in one:
            found.notes["scores of predictions left out"] += 1
        found.boxes.append(inside(box, sizes[box.image], place, found.notes))
    return found


def _images(content: dict[str, Any], file: Path, images: Images) -> dict[str, Path]:
    """Return the image file of each id."""
    by_id: dict[str, Path] = {}
    used: set[Path] = set()
    for n, one in enumerate(_list(content, "images", file)):
        place = f"{file}: images[{n}]"
        key, path = str(_get(one, "id", place)), images.find(str(_get(one, "file_name", place)), place)
        if key in by_id:
            raise UserError(f"{place}: id {quoted(key)} occurs twice")
        if path in used:
            raise UserError(f"{place}: file_name {quoted(one['file_name'])} occurs twice")
        by_id[key] = path
        used.add(path)
    return by_id


def _box(entry: dict[str, Any], by_id: Mapping[str, Path], names: Mapping[str, str], place: str) -> Box:
    image, category = (str(_get(entry, key, place)) for key in ("image_id", "category_id"))
    if image not in by_id:
        raise UserError(f"{place}: image_id {quoted(image)}: no image has this id")
    if category not in names:
        raise UserError(f"{place}: category_id {quoted(category)}: no category has this id")
    box = _get(entry, "bbox", place)
    if not isinstance(box, list) or len(box) != 4:
        raise UserError(f"{place}: bbox = {quoted(box)}: must be [x, y, width, height]")
    x, y, width, height = (number(value, place, "bbox") for value in box)
    return Box(by_id[image], x, y, width, height, names[category])


def _list(content: dict[str, Any], key: str, file: Path) -> list[dict[str, Any]]:
    value = content.get(key)
    if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
        raise UserError(f"{file}: {key}: must be a list of objects")
    return value


def _get(entry: dict[str, Any], key: str, place: str) -> Any:
    if key not in entry:
        raise UserError(f"{place}: has no {key}")
    return entry[key]
