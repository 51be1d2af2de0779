"""YOLO's detection format: ``data.yaml`` with names, and a text file of ``class x y width height`` for each image.

The numbers are the box's centre and size as fractions of the image (Ultralytics, "detect datasets").
"""

from pathlib import Path
from typing import Any

from pipeline.documents import read_yaml
from pipeline.errors import UserError
from pipeline.escaping import quoted
from pipeline.sources.labelled import Box, Images, Labelled, image_size, inside, number

_LABELS, _CONFIGS = "labels", ("data.yaml", "dataset.yaml", "data.yml")
_SPLITS = ("train", "val", "test")
_MAX_BYTES = 2**20


def yolo_config(folder: Path) -> Path | None:
    """Return the file that names the classes."""
    return next((folder / name for name in _CONFIGS if (folder / name).is_file()), None)


def read_yolo(folder: Path, images: Images) -> Labelled:
    """Read the label files in folders called ``labels``; an image belongs to the split whose folder it is in.

    Raises:
        UserError: a file is not of this format; the message names the file, the line, the value and the rule.
    """
    config = yolo_config(folder)
    if config is None:
        raise UserError(f"{folder}: has no {_CONFIGS[0]}, which names the classes")
    names = _names(read_yaml(config, number_keys=True), config)
    found, labels = Labelled(), _label_files(folder)
    for path in images.files:
        text = labels.pop(path.stem, None)
        if text is None:
            found.unlabelled.append(path)
            continue
        found.images.append(path)
        split = next((one for one in _SPLITS if one in path.relative_to(folder).parts[:-1]), None)
        if split:
            found.splits[path] = split
        _read_boxes(text, path, names, found)
    for text in labels.values():
        raise UserError(f"{text}: no image has this name")
    return found


def _names(content: Any, config: Path) -> dict[int, str]:
    names = content.get("names") if isinstance(content, dict) else None
    if isinstance(names, list):
        names = dict(enumerate(names))
    if not isinstance(names, dict) or not names:
        raise UserError(f"{config}: names: must be a list, or numbers with their names")
    return {int(number(key, str(config), "names")): str(name) for key, name in names.items()}


def _label_files(folder: Path) -> dict[str, Path]:
    files: dict[str, Path] = {}
    for path in sorted(folder.rglob("*.txt")):
        if _LABELS in path.relative_to(folder).parts[:-1] and files.setdefault(path.stem, path) != path:
            raise UserError(f"{path}: {files[path.stem]} has the same name; each image has one label file")
    return files


def _read_boxes(file: Path, image: Path, names: dict[int, str], found: Labelled) -> None:
    if file.stat().st_size > _MAX_BYTES:
        raise UserError(f"{file}: is larger than {_MAX_BYTES} bytes")
    width, height = image_size(image)
    for line, text in enumerate(file.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
        place, cells = f"{file} line {line}", text.split()
        if not cells:
            continue
        if len(cells) < 5 or (len(cells) > 5 and len(cells) % 2 == 0):
            raise UserError(f"{place}: {len(cells)} values: must be class x y width height, or class and a polygon")
        label = number(cells[0], place, "class")
        if label not in names:
            raise UserError(f"{place}: class {quoted(cells[0])}: the names go from {min(names)} to {max(names)}")
        values = [number(cell, place, "coordinate") for cell in cells[1:]]
        if max(values) > 1.5:
            raise UserError(f"{place}: coordinate {max(values):g}: must be a fraction of the image, 0 to 1")
        if len(values) == 4:
            x, y, w, h = values
            corners = (x - w / 2, y - h / 2, x + w / 2, y + h / 2)
        else:
            found.notes["polygons taken as the boxes around them"] += 1
            corners = (min(values[::2]), min(values[1::2]), max(values[::2]), max(values[1::2]))
        x0, y0, x1, y1 = (value * side for value, side in zip(corners, (width, height) * 2, strict=True))
        box = Box(image, x0, y0, x1 - x0, y1 - y0, names[int(label)])
        found.boxes.append(inside(box, (width, height), place, found.notes))
