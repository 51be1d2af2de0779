"""NIH ChestX-ray14: ``BBox_List_2017.csv`` with boxes, and ``Data_Entry_2017.csv`` with facts about each image."""

from pathlib import Path

from pipeline.errors import UserError
from pipeline.escaping import quoted
from pipeline.sources.labelled import Box, Images, Labelled, image_size, inside, number
from pipeline.tables import is_missing, read_table

BOXES, ENTRIES = "BBox_List_2017.csv", ("Data_Entry_2017_v2020.csv", "Data_Entry_2017.csv")
_LISTS = {"train_val_list.txt": "train", "test_list.txt": "test"}
_BOX = ["Bbox [x", "y", "w", "h]"]
_NOTHING = "no finding"


def read_nih(folder: Path, images: Images) -> Labelled:
    """Read the tables of a folder. The boxes are of few images; those that have none of their own are not negative.

    An image counts as labelled if it has a box, or if its only finding is 'No Finding'.

    Raises:
        UserError: a table is missing or malformed; the message names the file, the line, the value and the rule.
    """
    found = Labelled()
    boxes = folder / BOXES
    table = read_table(boxes, ["Image Index", "Finding Label", *_BOX])
    labelled: dict[str, Path] = {}
    for line, row in table.iterrows():
        place, name = f"{boxes} line {line}", row["Image Index"]
        path = labelled.setdefault(name, images.find(name, place))
        x, y, width, height = (number(row[column], place, column) for column in _BOX)
        box = Box(path, x, y, width, height, row["Finding Label"])
        found.boxes.append(inside(box, image_size(path), place, found.notes))
    entries = next((folder / name for name in ENTRIES if (folder / name).is_file()), None)
    if entries is not None:
        _read_entries(entries, images, labelled, found)
    found.images = list(dict.fromkeys(labelled.values()))
    for file, split in _LISTS.items():
        if (folder / file).is_file():
            names = {line.strip() for line in (folder / file).read_text(encoding="utf-8").splitlines()}
            found.splits |= {path: split for name, path in labelled.items() if name in names}
    found.unlabelled = [path for path in images.files if path not in set(found.images)]
    return found


def _read_entries(file: Path, images: Images, labelled: dict[str, Path], found: Labelled) -> None:
    columns = ["Image Index", "Finding Labels", "Patient ID", "Patient Age", "View Position"]
    table = read_table(file, columns, optional=["Patient Gender", "Patient Sex"])
    there = {path.name: path for path in images.files}
    for line, row in table.iterrows():
        name = row["Image Index"]
        path = there.get(name)
        if path is None:
            found.notes["images of the table that are not there"] += 1
            continue
        if row["Finding Labels"].casefold() == _NOTHING:
            if name in labelled:
                raise UserError(f"{file} line {line}: {quoted(name)}: 'No Finding', but {BOXES} has a box of it")
            labelled[name] = path
        found.patients[path] = row["Patient ID"]
        age = row["Patient Age"].lstrip("0").removesuffix("Y")
        sex = row.get("Patient Sex", row.get("Patient Gender", ""))
        facts = {"view": row["View Position"], "sex": sex, "age": age or "0"}
        found.facts[path] = {key: value for key, value in facts.items() if not is_missing(value)}
