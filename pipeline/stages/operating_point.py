"""Suppression, box shrink and score threshold: what turns candidates into reports. Chosen on val, and nowhere else."""

import logging
from dataclasses import replace

from lightning_fabric import Fabric

from pipeline.detection.inference import predict
from pipeline.detection.postprocess import Detections, PostProcessing, shrink
from pipeline.detection.retinanet import RetinaNet
from pipeline.evaluation.bootstrap import patient_weights, stable_threshold
from pipeline.evaluation.results import ImageResult
from pipeline.evaluation.rsna_score import best_thresholds
from pipeline.params import Params
from pipeline.stages.inputs import SplitData
from pipeline.stages.run_log import results_in_prepared_pixels

logger = logging.getLogger(__name__)

DRAWS = 500


def choose_operating_point(
    params: Params, fabric: Fabric, model: RetinaNet, rules: PostProcessing, val_data: SplitData
) -> tuple[PostProcessing, float]:
    """The rules, of those in ``evaluate.candidates``, and the threshold with the best RSNA score on val.

    The score is the mean over draws of val's patients: the best on a small split hangs on single images.
    Of equal scores the params' own values win.
    """
    groups = val_data.index["groupId"].to_list()
    best, best_results = -1.0, []
    tried = params.evaluate.candidates
    for nms_thresh in dict.fromkeys((rules.nms_thresh, *tried.nms_thresh)):
        plain = replace(rules, nms_thresh=nms_thresh, box_shrink=0.0)
        found = predict(fabric, model, val_data.dataset(None, params.seed), params.train.batch_size, plain)
        for share in dict.fromkeys((rules.box_shrink, *tried.box_shrink)):
            results = results_in_prepared_pixels([_shrunk(one, share) for one in found], val_data)
            score = _score(results, groups, params.seed)
            logger.debug("nms_thresh %g, box_shrink %g: RSNA score on val %.4f", nms_thresh, share, score)
            if score > best:
                best, best_results, chosen = score, results, replace(plain, box_shrink=share)
    return chosen, stable_threshold(best_results, groups, DRAWS, params.seed)


def _shrunk(found: Detections, share: float) -> Detections:
    return {**found, "boxes": shrink(found["boxes"], share)}


def _score(results: list[ImageResult], groups: list[str], seed: int) -> float:
    _, scores = best_thresholds(results, patient_weights(groups, DRAWS, seed))
    return float(scores.mean())
