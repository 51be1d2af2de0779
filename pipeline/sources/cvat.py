"""CVAT's own format, "CVAT for images 1.1": one XML file with a box in corners for each shape."""

from pathlib import Path
from xml.etree.ElementTree import Element

from pipeline.errors import UserError
from pipeline.sources.labelled import Box, Images, Labelled, image_size, inside, number
from pipeline.sources.xml_files import read_xml

_CORNERS = ("xtl", "ytl", "xbr", "ybr")


def read_cvat(file: Path, images: Images) -> Labelled:
    """Read the file; polygons become the boxes around them, and other shapes are left out, and counted.

    Raises:
        UserError: the file is not of this format; the message names the image, the shape, the value and the rule.
    """
    root = read_xml(file)
    if root.tag != "annotations":
        raise UserError(f"{file}: its root is <{root.tag}>, must be <annotations>")
    found, seen = Labelled(), set[Path]()
    for entry in root.findall("image"):
        name = _attribute(entry, "name", f"{file}: image")
        place = f"{file}: image {name}"
        path = images.find(name, place)
        if path in seen:
            raise UserError(f"{place}: occurs twice")
        seen.add(path)
        found.images.append(path)
        size = image_size(path)
        for n, shape in enumerate(entry):
            where = f"{place}: shape {n + 1}"
            corners = _corners(shape, where, found)
            if corners is None:
                continue
            x0, y0, x1, y1 = corners
            box = Box(path, x0, y0, x1 - x0, y1 - y0, _attribute(shape, "label", where))
            found.boxes.append(inside(box, size, where, found.notes))
    return found


def _corners(shape: Element, place: str, found: Labelled) -> list[float] | None:
    if shape.tag == "box":
        if float(shape.get("rotation") or 0) % 360:
            raise UserError(f"{place}: rotation = {shape.get('rotation')}: boxes must be upright")
        return [number(_attribute(shape, name, place), place, name) for name in _CORNERS]
    if shape.tag == "polygon":
        found.notes["polygons taken as the boxes around them"] += 1
        points = [point.split(",") for point in _attribute(shape, "points", place).split(";")]
        x, y = ([number(point[axis] if len(point) == 2 else None, place, "points") for point in points]
                for axis in (0, 1))  # fmt: skip
        return [min(x), min(y), max(x), max(y)]
    found.notes[f"shapes of kind {shape.tag} left out"] += 1
    return None


def _attribute(element: Element, name: str, place: str) -> str:
    value = element.get(name)
    if value is None:
        raise UserError(f"{place}: has no {name}")
    return value
