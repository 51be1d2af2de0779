"""VinDr-CXR's table: a row for each reader's box, in corners (``x_min, y_min, x_max, y_max``), or for 'No finding'."""

from pathlib import Path

from pipeline.errors import UserError
from pipeline.escaping import quoted
from pipeline.sources.labelled import Box, Images, Labelled, image_size, inside, number
from pipeline.tables import is_missing, read_table

CORNERS = ["x_min", "y_min", "x_max", "y_max"]
_NOTHING = "no finding"


def read_vindr(file: Path, images: Images) -> Labelled:
    """Read the table; the column ``rad_id`` names the reader.

    Raises:
        UserError: the file is not such a table; the message names the line, the value and the rule.
    """
    table = read_table(file, ["image_id", "class_name", *CORNERS], numbers=CORNERS, optional=["rad_id"])
    found, sizes = Labelled(), dict[Path, tuple[int, int]]()
    paths: dict[str, Path] = {}
    for line, row in table.iterrows():
        place = f"{file} line {line}"
        key = row["image_id"]
        if key not in paths:
            paths[key] = images.find(key, place)
            sizes[paths[key]] = image_size(paths[key])
            found.images.append(paths[key])
        empty = all(is_missing(row[name]) for name in CORNERS)
        nothing = row["class_name"].casefold() == _NOTHING
        if nothing != empty:
            rule = "'No finding' has no box" if nothing else "needs four numbers"
            raise UserError(f"{place}: class_name {quoted(row['class_name'])}: {rule}")
        if nothing:
            continue
        left, top, right, bottom = (number(row[name], place, name) for name in CORNERS)
        reader = str(row.get("rad_id", ""))
        box = Box(paths[key], left, top, right - left, bottom - top, row["class_name"], reader)
        found.boxes.append(inside(box, sizes[box.image], place, found.notes))
    return found
