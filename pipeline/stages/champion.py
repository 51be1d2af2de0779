"""The new model against the registry's champion, on the same test studies."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.data.annotations import IMAGES
from pipeline.data.dicom import read_radiograph
from pipeline.data.discovery import study_files
from pipeline.delivery.model_file import load_seen, patient_hash
from pipeline.delivery.predictor import Predictor
from pipeline.evaluation.comparison import Comparison, compare
from pipeline.evaluation.results import ImageResult, image_result
from pipeline.files import temporary_folder
from pipeline.params import Params
from pipeline.stages.inputs import SplitData
from pipeline.tracking import CHAMPION, download_model, registered

logger = logging.getLogger(__name__)

_BATCH = 4


@dataclass(frozen=True)
class AgainstChampion:
    """The comparison with version ``champion``, on the test studies of patients that it has not ``seen``."""

    champion: str
    seen: int
    comparison: Comparison


def compare_with_champion(
    params: Params, test: SplitData, results: Sequence[ImageResult], threshold: float
) -> AgainstChampion | None:
    """Score the champion on the test studies and compare; None where there is no champion yet.

    The champion reads the DICOM files as it would in use, with its own preprocessing. Studies of patients
    that it was trained on are left out, should the data have been split anew since.
    """
    champion = registered(CHAMPION)
    if champion is None:
        return None
    logger.info("comparing with the champion, version %s", champion.version)
    with temporary_folder() as folder:
        model = download_model(champion.uri, folder)
        seen = load_seen(model)
        unseen = [place for place, group in enumerate(test.index["groupId"]) if patient_hash(group) not in seen]
        predictor = Predictor(model)
        studies = test.index.iloc[unseen].reset_index(drop=True)
        files = study_files(Path(params.data.dir) / IMAGES, studies["patientId"].to_list())
        theirs = list(predict_results(predictor, files, [test.boxes[place] for place in unseen]))
    comparison = compare(
        ([results[place] for place in unseen], threshold),
        (theirs, predictor.config.operating_threshold),
        studies,
        params.evaluate.bootstrap_draws,
        params.seed,
    )
    return AgainstChampion(champion.version, len(test.index) - len(unseen), comparison)


def predict_results(predictor: Predictor, files: Sequence[Path], truth: Sequence[np.ndarray]) -> Iterator[ImageResult]:
    """All candidates of each file beside its true boxes, in pixels of the original."""
    for start in range(0, len(files), _BATCH):
        images = [read_radiograph(path).pixels for path in files[start : start + _BATCH]]
        for place, found in enumerate(predictor.predict(images, score_thresh=0.0), start=start):
            yield image_result(found.boxes, found.scores, truth[place])
