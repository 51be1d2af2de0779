"""Detection on radiographs of any size, in pixels of the original."""

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np
import numpy.typing as npt
import torch

from pipeline.data.geometry import to_original
from pipeline.data.preprocessing import preprocess
from pipeline.delivery.model_config import ModelConfig
from pipeline.delivery.model_file import load_model, pick_device
from pipeline.detection.dataset import channels_first
from pipeline.detection.detect import NotFiniteError, detect, is_large
from pipeline.detection.device import place
from pipeline.detection.ensemble import Ensemble
from pipeline.detection.parts import threads_for_single_parts
from pipeline.detection.postprocess import Detections
from pipeline.detection.retinanet import RetinaNet
from pipeline.dicom.levels import Levels
from pipeline.dicom.views import LATERAL
from pipeline.errors import BadStudyError, UserError
from pipeline.escaping import one_line
from pipeline.metrics.calibration import calibrated, image_probabilities_of
from pipeline.metrics.results import image_result, keep, reported
from pipeline.submission import labelled_string

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Prediction:
    """Detections of one image, best first: ``boxes`` ``[N, 4]`` xyxy in original pixels, ``scores`` ``[N]``.

    ``scores`` are calibrated. ``labels`` ``[N]`` are positions in ``classes``. ``class_scores`` ``[K]`` are the
    probabilities that the image shows each class, from its best candidate, reported or not.
    """

    boxes: Floats
    scores: Floats
    labels: npt.NDArray[np.int64]
    classes: tuple[str, ...]
    class_scores: Floats

    @property
    def image_score(self) -> float:
        """Return the probability of the class that the image shows most probably."""
        return float(self.class_scores.max())

    def text(self) -> str:
        """Return the detections as one string; see `labelled_string`."""
        return labelled_string(self.boxes, self.scores, self.labels, self.classes)


class Prepared(NamedTuple):
    """Images that the model can take: uint8 ``batch`` ``[B, C, S, S]``, and height and width of each original."""

    batch: torch.Tensor
    shapes: list[tuple[int, int]]


class Predictor:
    """A trained model with its preprocessing and thresholds."""

    def __init__(self, folder: Path, device: torch.device | None = None) -> None:
        self._folder, self._device = folder, device or pick_device()
        model, self.config = load_model(folder)
        self._model = place(model, self._device)

    @property
    def single_images_at_once(self) -> int:
        """Return how many calls of `predict` with one image each are worth making at the same time."""
        if self._device.type != "cpu":
            return 1
        size = self.config.preprocessing.image_size
        return threads_for_single_parts(torch.get_num_threads(), large=is_large(self._model, size, size))

    def members(self) -> "list[Predictor]":
        """Return a predictor for each network of an ensemble, with its thresholds and calibration; else this one."""
        if not isinstance(self._model, Ensemble):
            return [self]
        alone = [copy(self) for _ in self._model.members]
        for one, network in zip(alone, self._model.members, strict=True):
            one._model = Ensemble([cast(RetinaNet, network)], self._model.fusion_thresh)
        return alone

    def require_view(self, view: str) -> None:
        """Refuse a lateral view, unless the model was trained on such views too; an empty text means not known.

        Raises:
            BadStudyError: the view is refused.
        """
        if view in LATERAL and not self.config.lateral_views:
            raise BadStudyError(f"a lateral view ({view}), set aside; the model was trained on frontal views")

    def predict(
        self, images: Sequence[Levels], score_thresh: float | None = None, names: Sequence[str] = ()
    ) -> list[Prediction]:
        """Return detections above ``score_thresh`` (default: the operating one) of ``[H, W]`` uint8 or uint16 images.

        Raises:
            UserError: outputs of the model are not finite; the message gives the images by ``names`` or by number.
        """
        return self.predict_prepared(self.prepare(images), score_thresh, names)

    def prepare(self, images: Sequence[Levels]) -> Prepared:
        """Preprocess ``[H, W]`` uint8 or uint16 images."""
        prepared = [preprocess(image, self.config.preprocessing) for image in images]
        shapes = [(height, width) for height, width in (image.shape for image in images)]
        return Prepared(torch.from_numpy(channels_first(prepared)), shapes)

    @torch.no_grad()
    def predict_prepared(
        self, images: Prepared, score_thresh: float | None = None, names: Sequence[str] = ()
    ) -> list[Prediction]:
        """See `predict`."""
        thresholds = self.config.thresholds
        if score_thresh is not None:
            thresholds = (score_thresh,) * len(thresholds)
        try:
            detections = detect(self._model, images.batch.to(self._device), self.config.postprocessing)
        except NotFiniteError as error:
            which = ", ".join(one_line(names[index]) if names else f"image {index + 1}" for index in error.indices)
            what = which if names else f"{which} of the batch"
            raise UserError(f"{self._folder}: the outputs of the model for {what} are not finite") from None
        return [
            _in_original_pixels(one, shape, self.config, thresholds)
            for one, shape in zip(detections, images.shapes, strict=True)
        ]


def _in_original_pixels(
    found: Detections, shape: tuple[int, int], config: ModelConfig, thresholds: Sequence[float]
) -> Prediction:
    height, width = shape
    boxes, scores, labels = (found[name].cpu().numpy() for name in ("boxes", "scores", "labels"))
    original = to_original(np.asarray(boxes, np.float64), height, width, config.preprocessing.image_size)
    result = calibrated(image_result(original, scores, [], labels), config.calibrations)
    shown = keep(result, reported(result, thresholds))
    scores_of_classes = image_probabilities_of(result, config.calibrations)
    return Prediction(shown.boxes, shown.scores, shown.labels, config.classes, scores_of_classes)
