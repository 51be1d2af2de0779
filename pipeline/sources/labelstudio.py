"""Label Studio's JSON export: a list of tasks, whose rectangles are given in percent of the image."""

from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from pipeline.documents import read_json
from pipeline.errors import UserError
from pipeline.escaping import quoted
from pipeline.sources.labelled import Box, Images, Labelled, image_size, inside, number

_MAX_BYTES = 2**30
_RECTANGLE = "rectanglelabels"


def read_labelstudio(file: Path, images: Images) -> Labelled:
    """Read the export. Each annotation of a task is a reader's; cancelled ones, and predictions, count for nothing.

    Raises:
        UserError: the file is not of this format; the message names the task, the value and the rule.
    """
    tasks = read_json(file, _MAX_BYTES)
    if not isinstance(tasks, list):
        raise UserError(f"{file}: must be a list of tasks; export the project as JSON")
    found, seen = Labelled(), set[Path]()
    for n, task in enumerate(tasks):
        place = f"{file}: task {n + 1}"
        if not isinstance(task, dict) or not isinstance(task.get("data"), dict):
            raise UserError(f"{place}: has no data")
        path = images.find(_image_name(task["data"], place), place)
        if path in seen:
            raise UserError(f"{place}: another task has the same image")
        seen.add(path)
        done = [one for one in task.get("annotations") or [] if not one.get("was_cancelled")]
        if not done:
            found.unlabelled.append(path)
            continue
        found.images.append(path)
        for annotation in done:
            reader = str(annotation.get("completed_by", "")) if len(done) > 1 else ""
            for result in annotation.get("result") or []:
                _read_result(result, path, reader, place, found)
    return found


def _image_name(data: dict[str, Any], place: str) -> str:
    """Return the file's name from a task's address: an upload's path, an ``s3://`` address, or a local file's."""
    texts = [value for value in data.values() if isinstance(value, str)]
    address = data.get("image") or (texts[0] if texts else None)
    if not isinstance(address, str):
        raise UserError(f"{place}: data has no image")
    parts = urlsplit(address)
    local = parse_qs(parts.query).get("d")
    return unquote(local[0] if local else parts.path)


def _read_result(result: Any, path: Path, reader: str, place: str, found: Labelled) -> None:
    kind = result.get("type") if isinstance(result, dict) else None
    if kind != _RECTANGLE:
        found.notes[f"results of kind {kind} left out"] += 1
        return
    value = result.get("value")
    names = value.get(_RECTANGLE) if isinstance(value, dict) else None
    if not isinstance(names, list) or len(names) != 1:
        raise UserError(f"{place}: {_RECTANGLE} = {quoted(names)}: must be one label")
    if number(value.get("rotation", 0), place, "rotation") % 360:
        raise UserError(f"{place}: rotation = {value['rotation']}: boxes must be upright")
    width, height = image_size(path)
    for key, side in (("original_width", width), ("original_height", height)):
        if key in result and number(result[key], place, key) != side:
            raise UserError(f"{place}: {key} = {result[key]}: the image has {side}; it is another one, or was resized")
    x, y, w, h = (number(value.get(key), place, key) / 100 for key in ("x", "y", "width", "height"))
    box = Box(path, x * width, y * height, w * width, h * height, str(names[0]), reader)
    found.boxes.append(inside(box, (width, height), place, found.notes))
