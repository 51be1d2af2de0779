"""Studies of a folder, their labels if there are any, and the detections of models in them, for a person's review."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from pipeline.data.annotations import IMAGES, LABELS, Annotations, read_annotations
from pipeline.data.box_classes import LabelRules
from pipeline.data.discovery import by_study, image_files
from pipeline.data.frontal import choose_images
from pipeline.data.geometry import xyxy
from pipeline.data.parallel import Workers
from pipeline.data.reader import Outcome, Reader
from pipeline.delivery.model_config import SEEN_FILE
from pipeline.delivery.predictor import Prediction, Predictor
from pipeline.delivery.seen_patients import load_seen, patient_hash
from pipeline.dicom.radiograph import Radiograph
from pipeline.errors import BadStudyError, UserError
from pipeline.escaping import printable
from pipeline.metrics.results import Floats, ImageResult, image_result
from pipeline.paths import OUT_OF_FOLD
from pipeline.progress import with_progress
from pipeline.submission import Submitted, read_submission

_BATCH = 4


@dataclass(frozen=True)
class Model:
    """A model: the name that the user gave, its folder, and its predictor."""

    name: str
    folder: Path
    predictor: Predictor

    @property
    def classes(self) -> tuple[str, ...]:
        """Return the names of the classes."""
        return self.predictor.config.classes


@dataclass(frozen=True)
class Studies:
    """The studies of a folder.

    Attributes:
        files: study -> its image.
        labels: the labels, with the model's classes; None: the folder has no labels.
        named: the same labels with the names that the table has.
        notes: what was passed over -> how often.
    """

    files: dict[str, Path]
    labels: Annotations | None = None
    named: Annotations | None = None
    notes: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class Look:
    """Detections and class probabilities of the models for one study.

    Attributes:
        size: height and width in pixels.
        prediction: all detections of the first model, whatever their scores.
        votes: probabilities of the classes ``[K]``, from each model, or from each network of an ensemble.
    """

    size: tuple[int, int]
    prediction: Prediction
    votes: list[Floats]


def read_studies(folder: Path, classes: Sequence[str], rules: LabelRules | None) -> Studies:
    """List the studies of a data set in the project's layout, or of any folder of images.

    Args:
        folder: the folder.
        classes: the model's classes.
        rules: the classes of the labels; None: the model's, and other names are left out.

    Raises:
        UserError: there is no image, a table is malformed, or the labels have other classes than the model.
    """
    labelled = (folder / LABELS).exists()
    images = folder / IMAGES if labelled else folder
    if not images.is_dir():
        raise UserError(f"{printable(images)}: no such folder")
    rules = rules or LabelRules({name: [] for name in classes}, drop_others=True)
    labels = read_annotations(folder, rules=rules, with_classes=False) if labelled else None
    if labels and labels.names not in (tuple(classes), ("",)):
        raise UserError(f"{folder}: classes {', '.join(labels.names)}; the model has {', '.join(classes)}")
    files_of = by_study(image_files(images), set(labels.studies["patientId"] if labels else []), images)
    files = choose_images(files_of, list(files_of), Workers()).files
    named = read_annotations(folder, with_classes=False) if labelled else None
    studies = Studies(files, labels, named)
    studies.notes["studies with several images, of which none can be chosen"] = len(files_of) - len(files)
    for key in labels.problems.keys() & files.keys() if labels else ():
        del studies.files[key]
        studies.notes["studies whose labels cannot be used"] += 1
    return studies


def look_at(studies: Studies, models: Sequence[Model], reader: Reader) -> Iterator[tuple[str, Look]]:
    """Yield each study that can be read with what the models find; others are counted in its notes."""
    first, voters = models[0].predictor, [one for model in models for one in model.predictor.members()]
    read = zip(studies.files, reader.read_each(studies.files.values()), strict=True)
    shown = with_progress(read, "Looking", len(studies.files))
    for batch in _batches(_readable(shown, first, studies.notes)):
        levels = [radiograph.levels for _, radiograph in batch]
        found = first.predict(levels, 0.0)
        votes = [found if one is first else one.predict(levels, 0.0) for one in voters]
        for n, (key, _) in enumerate(batch):
            height, width = levels[n].shape
            yield key, Look((height, width), found[n], [each[n].class_scores for each in votes])


def _readable(
    read: Iterable[tuple[str, Outcome]], model: Predictor, notes: Counter[str]
) -> Iterator[tuple[str, Radiograph]]:
    for key, outcome in read:
        if not isinstance(outcome, Radiograph):
            notes["studies that cannot be read"] += 1
            continue
        try:
            model.require_view(outcome.view)
        except BadStudyError:
            notes["lateral views"] += 1
            continue
        yield key, outcome


def _batches(studies: Iterable[tuple[str, Radiograph]]) -> Iterator[list[tuple[str, Radiograph]]]:
    batch: list[tuple[str, Radiograph]] = []
    for study in studies:
        batch.append(study)
        if len(batch) == _BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def against_labels(studies: Studies, model: Model, looks: Mapping[str, Look]) -> dict[str, ImageResult]:
    """Return the labels with detections of a network that was not trained on them, for the studies that have both.

    These are the out-of-fold detections beside a cross-validation's model, or those of a model that does not know the
    study's patient.
    """
    if studies.labels is None:
        return {}
    file = model.folder / OUT_OF_FOLD
    outside = read_submission(file, model.classes) if file.exists() else {}
    seen = load_seen(model.folder) if (model.folder / SEEN_FILE).exists() else set[str]()
    table = studies.labels.studies
    patients = dict(zip(table["patientId"], table["groupId"], strict=True))
    keys = [key for key in patients if key in looks]
    found: dict[str, ImageResult] = {}
    for key, boxes, labels in zip(keys, studies.labels.boxes_of(keys), studies.labels.labels_of(keys), strict=True):
        known = patient_hash(patients[key]) in seen
        own: Submitted | Prediction | None = outside.get(key) or (None if known else looks[key].prediction)
        if own is not None:
            found[key] = image_result(own.boxes, own.scores, xyxy(boxes), own.labels, np.asarray(labels))
    return found
