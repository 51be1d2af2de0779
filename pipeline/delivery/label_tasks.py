"""Studies with suggested boxes, for tools in which people draw boxes: Label Studio's tasks, and COCO's JSON.

Label Studio: https://labelstud.io/guide/predictions; a box is given in percent of the image.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

_TAG, _IMAGE = "label", "image"


@dataclass(frozen=True)
class Suggestion:
    """A box to correct: x, y, width, height in pixels; ``score`` is None if it is a label that is there already."""

    box: tuple[float, float, float, float]
    name: str
    score: float | None = None


@dataclass(frozen=True)
class Task:
    """A study to look at: its picture, by a path below the folder that Label Studio may serve, and why."""

    study: str
    picture: str
    width: int
    height: int
    reason: str
    suggestions: Sequence[Suggestion]


def label_studio_config(names: Sequence[str]) -> str:
    """Return the labelling interface of a Label Studio project with these classes."""
    labels = "\n".join(f"    <Label value={quoteattr(name)}/>" for name in names)
    return f"""<View>
  <Header value="$study: $reason"/>
  <Image name="{_IMAGE}" value="$image" zoom="true" zoomControl="true" brightnessControl="true" contrastControl="true"/>
  <RectangleLabels name="{_TAG}" toName="{_IMAGE}">
{labels}
  </RectangleLabels>
</View>
"""


def label_studio_tasks(tasks: Sequence[Task], model: str) -> list[dict[str, Any]]:
    """Return the tasks to import, each with its suggestions as a prediction of ``model``."""
    return [
        {
            "data": {
                _IMAGE: f"/data/local-files/?d={quote(task.picture)}",
                "study": task.study,
                "reason": task.reason,
            },
            "predictions": [
                {"model_version": model, "result": [_result(n, task) for n in range(len(task.suggestions))]}
            ],
        }
        for task in tasks
    ]


def _result(number: int, task: Task) -> dict[str, Any]:
    one = task.suggestions[number]
    x, y, width, height = one.box
    value = {"x": x / task.width, "y": y / task.height, "width": width / task.width, "height": height / task.height}
    score = {} if one.score is None else {"score": round(one.score, 4)}
    return {
        "id": f"box{number}",
        "type": "rectanglelabels",
        "from_name": _TAG,
        "to_name": _IMAGE,
        "original_width": task.width,
        "original_height": task.height,
        "image_rotation": 0,
        "value": {key: 100 * part for key, part in value.items()} | {"rotation": 0, "rectanglelabels": [one.name]},
        **score,
    }


def coco_of(tasks: Sequence[Task], names: Sequence[str]) -> dict[str, Any]:
    """Return the studies and suggestions as COCO's JSON; ``attributes`` tell labels from detections."""
    category: Mapping[str, int] = {name: number for number, name in enumerate(names, start=1)}
    images = [
        {"id": n, "file_name": task.picture.rsplit("/", 1)[-1], "width": task.width, "height": task.height}
        for n, task in enumerate(tasks, start=1)
    ]
    boxes: list[dict[str, Any]] = []
    for n, task in enumerate(tasks, start=1):
        for one in task.suggestions:
            numbers = {"id": len(boxes) + 1, "image_id": n, "category_id": category[one.name], "iscrowd": 0}
            source = {"source": "label"} if one.score is None else {"source": "model", "score": round(one.score, 4)}
            boxes.append(numbers | {"bbox": list(one.box), "area": one.box[2] * one.box[3], "attributes": source})
    categories = [{"id": number, "name": name} for name, number in category.items()]
    return {"categories": categories, "images": images, "annotations": boxes}
