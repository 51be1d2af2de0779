"""Suppression, box shrink and score threshold, which turn candidates into reports. They are chosen on val alone."""

import logging
from collections.abc import Iterator
from dataclasses import replace

from lightning_fabric import Fabric

from pipeline.assembly.inputs import SplitData
from pipeline.assembly.validation import results_in_prepared_pixels
from pipeline.detection.inference import predict
from pipeline.detection.postprocess import Detections, shrink
from pipeline.detection.retinanet import RetinaNet
from pipeline.detection.settings import PostProcessing
from pipeline.metrics.bootstrap import patient_weights, stable_threshold
from pipeline.metrics.results import ImageResult
from pipeline.metrics.rsna_score import best_thresholds
from pipeline.params import Params

logger = logging.getLogger(__name__)

DRAWS = 500
_ERRORS = 2  # standard errors; chance seldom gives a larger gain


def choose_operating_point(
    params: Params, fabric: Fabric, model: RetinaNet, post_processing: PostProcessing, val_data: SplitData
) -> tuple[PostProcessing, float]:
    """Choose the post_processing in ``evaluate.candidates`` and the threshold with the best RSNA score on val.

    Scores are means over draws of val's patients, because the best on a small split depends on single images.
    For the same reason, the params' own values stay unless the gain is larger than twice its standard error.
    """
    groups = val_data.index["groupId"].to_list()
    weights = patient_weights(groups, DRAWS, params.seed)
    tried = [
        (chosen, results, best_thresholds(results, weights)[1])
        for chosen, results in _candidates(params, fabric, model, post_processing, val_data)
    ]
    own = tried[0]
    best = max(tried, key=lambda one: float(one[2].mean()))
    gain = best[2] - own[2]
    chosen, results, _ = best if gain.mean() > _ERRORS * gain.std() else own
    logger.info(
        "val: nms_thresh %g, box_shrink %g; RSNA score %.3f, of the params' own values %.3f",
        chosen.nms_thresh, chosen.box_shrink, best[2].mean() if chosen is best[0] else own[2].mean(), own[2].mean(),
    )  # fmt: skip
    return chosen, stable_threshold(results, groups, DRAWS, params.seed)


def _candidates(
    params: Params, fabric: Fabric, model: RetinaNet, post_processing: PostProcessing, val_data: SplitData
) -> Iterator[tuple[PostProcessing, list[ImageResult]]]:
    """Yield each combination of values and its results on val; the params' own values come first."""
    listed = params.evaluate.candidates
    for nms_thresh in dict.fromkeys((post_processing.nms_thresh, *listed.nms_thresh)):
        plain = replace(post_processing, nms_thresh=nms_thresh, box_shrink=0.0)
        detections = predict(fabric, model, val_data.dataset(None, params.seed), params.train.batch_size, plain)
        for share in dict.fromkeys((post_processing.box_shrink, *listed.box_shrink)):
            shrunk = [_shrunk(one, share) for one in detections]
            yield replace(plain, box_shrink=share), results_in_prepared_pixels(shrunk, val_data)


def _shrunk(detections: Detections, share: float) -> Detections:
    return {**detections, "boxes": shrink(detections["boxes"], share)}
