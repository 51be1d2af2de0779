"""The comparison of the new model with the registry's champion, on the same test studies."""

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from pipeline.assembly.inputs import SplitData
from pipeline.assembly.originals import read_originals
from pipeline.assembly.registration import weights_digest
from pipeline.delivery.seen_patients import load_seen, patient_hash
from pipeline.dicom.radiograph import Radiograph
from pipeline.errors import UserError
from pipeline.evaluation.comparison import Comparison, Scored, compare
from pipeline.files import temporary_folder
from pipeline.metrics.results import ImageResult, image_result
from pipeline.metrics.rsna_score import image_rsna_scores
from pipeline.params import Params
from pipeline.tracking import ChampionGoneError, Registered, download_model, registered_champion

if TYPE_CHECKING:
    from pipeline.delivery.predictor import Predictor

logger = logging.getLogger(__name__)

_BATCH = 4


@dataclass(frozen=True)
class AgainstChampion:
    """The comparison with version ``champion``, without the ``seen`` test studies of patients that it knows.

    ``scores`` are the champion's RSNA scores of single studies, by id, of those that count.
    """

    champion: str
    champion_run_id: str
    champion_weights_sha256: str
    seen: int
    comparison: Comparison
    scores: dict[str, float]


class OtherClassesError(UserError):
    """The champion detects other classes than the new model."""


def champion_to_compare() -> Registered | None:
    """Return the champion; None, with a warning, if it is gone: the new model's results do not depend on it."""
    try:
        return registered_champion()
    except ChampionGoneError as error:
        logger.warning("no comparison: %s", error)
        return None


def compare_with_champion(params: Params, test: SplitData, challenger: Scored, champion: Registered) -> AgainstChampion:
    """Score the champion on the test studies and compare.

    The champion reads the DICOM files as it does in use, with its own preprocessing. If the data were split
    anew since, studies of patients that it was trained or chosen on are left out.

    Raises:
        OtherClassesError: the champion detects other classes than those of the test studies.
        UserError: the champion's files cannot be fetched, or its weights are not those that were registered.
    """
    from pipeline.delivery.predictor import Predictor  # PyTorch takes seconds, and often there is no champion

    logger.info("comparing with the champion, version %s", champion.version)
    with temporary_folder() as folder:
        model = download_model(champion.uri, folder)
        digest = weights_digest(model)
        if champion.weights_sha256 not in ("", digest):
            raise UserError(
                f"{champion.uri}: its weights differ from those that were registered; the download may be incomplete"
            )
        seen = load_seen(model)
        unseen = [index for index, group in enumerate(test.index["groupId"]) if patient_hash(group) not in seen]
        predictor = Predictor(model)
        studies = test.index.iloc[unseen].reset_index(drop=True)
        radiographs = read_originals(params, studies["patientId"])
        if predictor.config.classes != test.classes:
            names, own = (", ".join(classes) for classes in (predictor.config.classes, test.classes))
            raise OtherClassesError(f"champion {champion.version} detects {names}; this model {own}")
        truth = [(test.boxes[index], test.labels[index]) for index in unseen]
        theirs = list(predict_results(predictor, radiographs, truth))
    comparison = compare(
        replace(challenger, results=[challenger.results[index] for index in unseen]),
        Scored(theirs, predictor.config.thresholds, predictor.config.calibrations),
        studies,
        params.evaluate.bootstrap_draws,
        params.seed,
    )
    left_out = len(test.index) - len(unseen)
    each = image_rsna_scores(theirs, predictor.config.thresholds)
    scores = {key: round(float(one), 6) for key, one in zip(studies["patientId"], each, strict=True) if one == one}
    return AgainstChampion(champion.version, champion.run_id, digest, left_out, comparison, scores)


def predict_results(
    predictor: "Predictor", radiographs: Iterable[Radiograph], truth: Iterable[tuple[np.ndarray, np.ndarray]]
) -> Iterator[ImageResult]:
    """Yield each radiograph's detections, whatever their score, and its true boxes, in pixels of the original.

    ``truth`` has each study's boxes ``[M, 4]`` xyxy and their labels ``[M]``.
    """
    pairs = zip(radiographs, truth, strict=True)
    while batch := list(islice(pairs, _BATCH)):
        predictions = predictor.predict([radiograph.levels for radiograph, _ in batch], score_thresh=0.0)
        for one, (_, (boxes, labels)) in zip(predictions, batch, strict=True):
            yield image_result(one.boxes, one.scores, boxes, one.labels, labels)
