"""Pascal VOC's format: an XML file for each image, with corners in pixels (Everingham et al. 2010, development kit)."""

from pathlib import Path

from pipeline.errors import UserError
from pipeline.sources.labelled import Box, Images, Labelled, image_size, inside, number
from pipeline.sources.xml_files import read_xml, text_of

_CORNERS = ("xmin", "ymin", "xmax", "ymax")


def read_voc(files: list[Path], images: Images) -> Labelled:
    """Read the annotation files. Corners are taken as they are, which is how today's tools write them.

    Raises:
        UserError: a file is not of this format; the message names the file, the object, the value and the rule.
    """
    found = Labelled()
    of_file: dict[Path, Path] = {}
    for file in files:
        root = read_xml(file)
        if root.tag != "annotation":
            raise UserError(f"{file}: its root is <{root.tag}>, must be <annotation>")
        path = images.find(text_of(root, "filename", str(file)), str(file))
        if path in of_file:
            raise UserError(f"{file}: {of_file[path]} is about the same image; each image has one file")
        of_file[path] = file
        found.images.append(path)
        size = image_size(path)
        for n, item in enumerate(root.findall("object")):
            place = f"{file}: object {n + 1}"
            x0, y0, x1, y1 = (number(text_of(item, f"bndbox/{name}", place), place, name) for name in _CORNERS)
            box = Box(path, x0, y0, x1 - x0, y1 - y0, text_of(item, "name", place))
            found.boxes.append(inside(box, size, place, found.notes))
    found.unlabelled = [path for path in images.files if path not in of_file]
    return found
