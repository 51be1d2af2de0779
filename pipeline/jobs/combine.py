"""The last stage of a cross-validation: the folds' networks -> one model, tuned on their out-of-fold detections."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from lightning_fabric import Fabric

from pipeline.assembly.detections import results_table
from pipeline.assembly.inputs import SplitData, out_of_fold, read_inputs
from pipeline.assembly.operating_point import DRAWS, choose_operating_point
from pipeline.assembly.run_identity import read_run_id
from pipeline.assembly.training import post_processing_of
from pipeline.assembly.validation import results_in_prepared_pixels
from pipeline.data.geometry import to_original
from pipeline.data.splits import read_folds
from pipeline.delivery.model_config import ModelConfig, one_or_each
from pipeline.delivery.model_file import load_model, save_model
from pipeline.delivery.seen_patients import save_seen
from pipeline.detection.device import make_fabric, place
from pipeline.detection.ensemble import Ensemble, fuse_detections, one_look
from pipeline.detection.inference import predict
from pipeline.detection.postprocess import Detections, mirror
from pipeline.detection.retinanet import RetinaNet
from pipeline.detection.settings import EnsembleSettings, PostProcessing
from pipeline.errors import run_main
from pipeline.files import write_json, write_text
from pipeline.metrics.bootstrap import patient_weights
from pipeline.metrics.calibration import Calibration, calibrated
from pipeline.metrics.results import each_class, image_result
from pipeline.metrics.rsna_score import best_thresholds
from pipeline.params import Params, load_params
from pipeline.paths import CROSSVAL, MODELS, OUT_OF_FOLD, RUN_FILE, SPLITS_FILE

logger = logging.getLogger(__name__)


class Fold(NamedTuple):
    """A fold's network and the studies that it was not trained on."""

    network: RetinaNet
    config: ModelConfig
    studies: SplitData


def combine(params: Params, folder: Path = CROSSVAL) -> ModelConfig:
    """Write the model of all folds, and the detections of each fold's network on the fold's own studies.

    Post-processing and threshold are chosen on these detections. No study outside test has detections of more than one
    network that was not trained on it, so a fusion of boxes is chosen between two looks of one network.
    """
    folds = [_read_fold(params, folder, number) for number in read_folds(SPLITS_FILE)]
    fabric = make_fabric(params.train.accelerator, "32-true", alone=True)
    studies = out_of_fold([fold.studies for fold in folds])
    own = post_processing_of(params)
    fusion_thresh = None
    if params.crossval.fusion == "boxes":
        fusion_thresh = _choose_fusion(params, fabric, folds, studies, own)
    ensembles = [Ensemble([fold.network], fusion_thresh) for fold in folds]

    def detect_out_of_fold(post_processing: PostProcessing) -> list[Detections]:
        return _detect(params, fabric, folds, ensembles, post_processing)

    point = choose_operating_point(params, detect_out_of_fold, own, studies)
    first = folds[0].config
    config = first.model_copy(
        update={
            "ensemble": EnsembleSettings(members=len(folds), fusion_thresh=fusion_thresh),
            "postprocessing": point.post_processing,
            "calibration": one_or_each(point.calibrations),
            "operating_threshold": one_or_each(point.thresholds),
            "operating_rule": point.rule,
            "val_map": float(np.mean([fold.config.val_map for fold in folds])),
        }
    )
    save_model(folder / MODELS, Ensemble([fold.network for fold in folds], fusion_thresh), config)
    save_seen(folder / MODELS, studies.index["groupId"])
    write_json(folder / MODELS / RUN_FILE, {"run_id": read_run_id(folder / RUN_FILE)})
    detections = detect_out_of_fold(point.post_processing)
    write_text(folder / MODELS / OUT_OF_FOLD, _table(detections, studies, point.calibrations))
    fusion = "outputs averaged" if fusion_thresh is None else f"boxes fused above IoU {fusion_thresh:g}"
    thresholds = ", ".join(f"{threshold:.3f}" for threshold in point.thresholds)
    logger.info("%d networks in one model: %s, threshold %s", len(folds), fusion, thresholds)
    return config


def _read_fold(params: Params, folder: Path, number: int) -> Fold:
    path = folder / f"fold{number}"
    network, config = load_model(path)
    assert isinstance(network, RetinaNet)
    return Fold(network, config, read_inputs(params, fold=number)["val"])


def _detect(
    params: Params,
    fabric: Fabric,
    folds: Sequence[Fold],
    models: Sequence[Ensemble | RetinaNet],
    post_processing: PostProcessing,
) -> list[Detections]:
    detections: list[Detections] = []
    for fold, model in zip(folds, models, strict=True):
        place(model, fabric.device)
        dataset = fold.studies.dataset(None, params.seed)
        detections += predict(fabric, model, dataset, params.train.batch_size, post_processing)
    return detections


def _choose_fusion(
    params: Params, fabric: Fabric, folds: Sequence[Fold], studies: SplitData, post_processing: PostProcessing
) -> float:
    """Return the fusion threshold with the best RSNA score of the image and its mirror image, fused."""
    listed = params.crossval.fusion_thresh
    if len(listed) == 1:
        return listed[0]
    alone = one_look(post_processing)
    looks: list[list[Detections]] = [[], []]
    for fold in folds:
        place(fold.network, fabric.device)
        for found, mirrored in zip(looks, (False, True), strict=True):
            dataset = fold.studies.dataset(_mirrored if mirrored else None, params.seed)
            own = predict(fabric, fold.network, dataset, params.train.batch_size, alone)
            size = fold.studies.image_size
            found += [{**one, "boxes": mirror(one["boxes"], size)} for one in own] if mirrored else own
    weights = patient_weights(studies.index["groupId"].to_list(), DRAWS, params.seed)

    def score(threshold: float) -> float:
        results = results_in_prepared_pixels(fuse_detections(looks, threshold, post_processing), studies)
        return float(np.mean([best_thresholds(own, weights)[1] for own in each_class(results, len(studies.classes))]))

    scores = {threshold: score(threshold) for threshold in listed}
    logger.info("out-of-fold RSNA score by fusion_thresh: %s", {key: round(value, 4) for key, value in scores.items()})
    return max(scores, key=lambda threshold: scores[threshold])


def _mirrored(image: np.ndarray, boxes: np.ndarray, _: int) -> tuple[np.ndarray, np.ndarray]:
    return np.ascontiguousarray(image[:, ::-1]), boxes


def _table(detections: Sequence[Detections], studies: SplitData, calibrations: Sequence[Calibration]) -> str:
    """Return the detections with calibrated scores, in pixels of the originals, as a submission."""
    sizes = zip(studies.index["height"], studies.index["width"], strict=True)
    results = [
        calibrated(
            image_result(
                to_original(one["boxes"].double().numpy(), height, width, studies.image_size),
                one["scores"].numpy(),
                [],
                one["labels"].numpy(),
            ),
            calibrations,
        )
        for one, (height, width) in zip(detections, sizes, strict=True)
    ]
    return results_table(studies.index["patientId"].to_list(), results, studies.classes, digits=(9, 3))


def main() -> None:
    """Run the stage on ``params.yaml``."""
    combine(load_params())


if __name__ == "__main__":
    run_main(main)
