"""A queue of the studies that a person should look at next, as a Label Studio project and as COCO's JSON."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np

from pipeline.assembly.review import Look, Model, Studies, against_labels, look_at, read_studies
from pipeline.data.box_classes import LabelRules
from pipeline.data.geometry import xyxy
from pipeline.data.reader import Reader
from pipeline.delivery.label_tasks import Suggestion, Task, coco_of, label_studio_config, label_studio_tasks
from pipeline.dicom.radiograph import Radiograph
from pipeline.errors import UserError
from pipeline.escaping import printable, safe_cell
from pipeline.evaluation.review import REASONS, Queued, choose, reasons, unlabelled
from pipeline.files import directory_atomic, write_json, write_text
from pipeline.metrics.results import ImageResult, image_result, keep
from pipeline.sources.label_table import csv_text

PICTURES = "images"


def queue(
    folder: Path, models: Sequence[Model], out: Path, count: int, reader: Reader, rules: LabelRules | None = None
) -> str:
    """Write the queue to the new folder ``out``; return lines about it.

    Likely label errors are sought only where a network that was not trained on a study looked at it, see
    `against_labels`.

    Args:
        folder: a data set in the project's layout, or any folder of images, which then have no labels.
        models: the first one's boxes are suggested; all are asked whether they agree, as are an ensemble's networks.
        out: a new or empty folder.
        count: number of studies to choose.
        reader: reads the images.
        rules: the classes of labels; None: those of the model.

    Raises:
        UserError: ``out`` has contents, there is no image, the classes differ, or a table is malformed.
    """
    if out.is_dir() and any(out.iterdir()):
        raise UserError(f"{printable(out)}: has contents; give a new or an empty folder")
    for model in models[1:]:
        if model.classes != models[0].classes:
            raise UserError(f"{model.name}: has other classes than {models[0].name}")
    studies = read_studies(folder, models[0].classes, rules)
    looks = dict(look_at(studies, models, reader))
    judged = against_labels(studies, models[0], looks)
    thresholds = models[0].predictor.config.thresholds
    values = {
        key: reasons(look.votes, look.prediction.class_scores, judged.get(key), thresholds)
        for key, look in looks.items()
    }
    chosen = choose(values, count)
    with directory_atomic(out) as made:
        made.chmod(0o700)  # names of files often enough name persons
        rows = [[safe_cell(one.study), one.reason, *(f"{values[one.study].get(name, 0):.4f}" for name in REASONS)]
                for one in chosen]  # fmt: skip
        write_text(made / "queue.csv", csv_text(["patientId", "reason", *REASONS], rows))
        _write_pictures(made / PICTURES, {one.study: studies.files[one.study] for one in chosen}, reader)
        _write_tasks(made, out.name, chosen, studies, models[0], looks, judged)
    return _summary(chosen, studies, looks, judged)


def _write_pictures(folder: Path, files: Mapping[str, Path], reader: Reader) -> None:
    """Write each study's image in 8 bits, as its header's window shows it."""
    folder.mkdir()
    for (key, path), outcome in zip(files.items(), reader.read_each(files.values()), strict=True):
        if not isinstance(outcome, Radiograph):
            raise UserError(f"{printable(path)}: cannot be read any more")
        done, data = cv2.imencode(".png", outcome.pixels)
        assert done
        (folder / f"{key}.png").write_bytes(data.tobytes())


def _write_tasks(
    made: Path,
    name: str,
    chosen: Sequence[Queued],
    studies: Studies,
    model: Model,
    looks: Mapping[str, Look],
    judged: Mapping[str, ImageResult],
) -> None:
    tasks = []
    for one in chosen:
        height, width = looks[one.study].size
        picture = f"{name}/{PICTURES}/{one.study}.png"
        # Where a network that was not trained on the study looked at it, its detections are the reason.
        found = judged.get(one.study) or _unlabelled_result(looks[one.study])
        boxes = _suggestions(one.study, studies, model, found)
        tasks.append(Task(one.study, picture, width, height, REASONS[one.reason], boxes))
    names = list(dict.fromkeys([*_names(studies, model), *model.classes]))
    write_json(made / "label_studio.json", label_studio_tasks(tasks, printable(model.name)))
    write_text(made / "label_studio.xml", label_studio_config(names))
    write_json(made / "coco.json", coco_of(tasks, names))


def _names(studies: Studies, model: Model) -> list[str]:
    """Return the names of the label table's classes; the only class of a table without names is the model's first."""
    return [name or model.classes[0] for name in studies.named.names] if studies.named else []


def _unlabelled_result(look: Look) -> ImageResult:
    found = look.prediction
    return image_result(found.boxes, found.scores, np.zeros((0, 4)), found.labels)


def _suggestions(key: str, studies: Studies, model: Model, found: ImageResult) -> list[Suggestion]:
    """Return a study's labels, and the reported detections that overlap none of them."""
    suggested: list[Suggestion] = []
    if studies.named and studies.labels:
        names = _names(studies, model)
        each = zip(studies.named.boxes_of([key])[0].tolist(), studies.named.labels_of([key])[0], strict=True)
        suggested = [Suggestion((x, y, w, h), names[label]) for (x, y, w, h), label in each]
        boxes, labels = studies.labels.boxes_of([key])[0], studies.labels.labels_of([key])[0]
        found = replace(found, truth=xyxy(boxes), truth_labels=labels)
    new = keep(found, unlabelled(found, model.predictor.config.thresholds))
    for (x0, y0, x1, y1), score, label in zip(new.boxes.tolist(), new.scores.tolist(), new.labels, strict=True):
        suggested.append(Suggestion((x0, y0, x1 - x0, y1 - y0), model.classes[label], score))
    return suggested


def _summary(
    chosen: Sequence[Queued], studies: Studies, looks: Mapping[str, Look], judged: Mapping[str, ImageResult]
) -> str:
    reasons = Counter(one.reason for one in chosen)
    lines = [
        f"{len(chosen)} of {len(looks)} studies: {', '.join(f'{count} {name}' for name, count in reasons.items())}"
    ]
    lines += [f"passed over: {count} {what}" for what, count in studies.notes.items() if count]
    known = set(studies.labels.studies["patientId"]) & looks.keys() if studies.labels else set[str]()
    if trained_on := len(known) - len(judged):
        lines.append(
            f"label errors were not sought in {trained_on} studies, on which the model was trained or chosen;"
            " `pneumoflow crossval` gives detections of networks that do not know them"
        )
    return "\n".join(lines)
