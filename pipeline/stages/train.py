"""Stage ``train``: prepared images and splits -> a RetinaNet, its thresholds and its MLflow run."""

import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline import provenance
from pipeline.delivery.model_file import FORMAT_VERSION, ModelConfig, save_model
from pipeline.detection.anchor_fit import coverage, fit_shapes
from pipeline.detection.anchors import LEVEL_STRIDES, anchor_sizes, make_anchors, shape_grid
from pipeline.detection.augment import Augmenter, AugmentSettings
from pipeline.detection.device import make_fabric
from pipeline.detection.engine import Best, Hooks, Trainer, TrainSettings
from pipeline.detection.extra_losses import ExtraLosses
from pipeline.detection.inference import predict
from pipeline.detection.losses import DetectionLoss, LossSettings
from pipeline.detection.mask_losses import MaskSettings
from pipeline.detection.memory import keep_freed_memory
from pipeline.detection.postprocess import Detections, PostProcessing
from pipeline.detection.retinanet import Architecture, RetinaNet
from pipeline.detection.weights import start_from
from pipeline.errors import UserError, run_main
from pipeline.evaluation.anchor_plot import plot_anchor_coverage
from pipeline.evaluation.bootstrap import stable_threshold
from pipeline.evaluation.coco import coco_map
from pipeline.evaluation.results import ImageResult, image_result
from pipeline.evaluation.rsna_score import best_threshold
from pipeline.files import write_json
from pipeline.params import Params, load_params
from pipeline.stages.inputs import IMAGE_CLASSES, SplitData, read_inputs
from pipeline.stages.preprocess import PREPARED, preparation
from pipeline.stages.split import SPLITS_FILE
from pipeline.tracking import TrackedRun, tracked_run

logger = logging.getLogger(__name__)

MODELS = Path("models")
CHECKPOINTS = Path("checkpoints")
RUN_FILE = "mlflow_run.json"
THRESHOLD_DRAWS = 500
_EXTRA_LOSSES = {"mask", "tversky_beta", "distance_w0", "distance_sigma", "image_class"}


def train(params: Params, models: Path = MODELS, checkpoints: Path = CHECKPOINTS) -> None:
    """Train, keep the best epoch, choose the operating threshold on val, and log it all.

    An interrupted run with the same params, data and code goes on after its last checkpoint.
    """
    splits = read_inputs(params.preprocess.image_size)
    folder = checkpoints / training_fingerprint(params)
    run_file = folder / RUN_FILE
    former = json.loads(run_file.read_text())["run_id"] if run_file.exists() else None
    with tracked_run(former, run_tags(params)) as run:
        write_json(run_file, {"run_id": run.run_id})
        run.log_params(params.model_dump(mode="json"))
        log_datasets(run, params, splits)
        layout = architecture(params, splits["train"])
        log_anchor_coverage(run, params, layout, splits["train"])
        trainer = build_trainer(params, layout, splits["train"], splits["val"], folder)
        if trainer.resume():
            logger.info(
                "going on with step %d of epoch %d of %d", trainer.position + 1, trainer.epoch + 1, params.train.epochs
            )
        with run.stopping.deferred():
            best = trainer.fit(epoch_hooks(run, splits["val"]))
        config = finish(params, layout, best, splits["val"], models)
        run.log_metrics({"val/operating_threshold": config.operating_threshold}, step=params.train.epochs)
        write_json(models / RUN_FILE, {"run_id": run.run_id})
    shutil.rmtree(folder)  # only what was interrupted is resumed
    logger.info("best epoch %d, val map %.3f, threshold %.3f", best.epoch + 1, best.score, config.operating_threshold)


def build_trainer(
    params: Params, layout: Architecture, train_data: SplitData, val_data: SplitData, folder: Path
) -> Trainer:
    """Assemble a `Trainer` from the params."""
    torch.manual_seed(params.seed)
    fabric = make_fabric(params.train.accelerator, params.train.precision)
    section = params.loss
    model = RetinaNet(layout, params.model.weights)
    start_from(model, params.model.weights)
    augmenter = Augmenter(AugmentSettings(**params.augment.model_dump()))
    loop = params.train.model_dump(exclude={"precision", "accelerator"})
    return Trainer(
        fabric,
        model,
        DetectionLoss(LossSettings(**section.model_dump(exclude=_EXTRA_LOSSES))),
        ExtraLosses(
            MaskSettings(dict(section.mask.items()), section.tversky_beta, section.distance_w0, section.distance_sigma),
            section.image_class,
        ),
        train_data.dataset(augmenter, params.seed),
        val_data.dataset(None, params.seed),
        post_processing(params),
        TrainSettings(**loop, seed=params.seed),
        folder,
    )


def finish(params: Params, layout: Architecture, best: Best, val_data: SplitData, models: Path) -> ModelConfig:
    """Choose the threshold on val and write the model."""
    model = RetinaNet(layout)
    model.load_state_dict(best.weights)
    # float32 as at inference, whatever precision the training had.
    fabric = make_fabric(params.train.accelerator, "32-true")
    fabric.to_device(model)
    found = predict(
        fabric, model, val_data.dataset(None, params.seed), params.train.batch_size, post_processing(params)
    )
    results = results_in_prepared_pixels(found, val_data)
    threshold = stable_threshold(results, val_data.index["groupId"].to_list(), THRESHOLD_DRAWS, params.seed)
    config = ModelConfig(
        format_version=FORMAT_VERSION,
        classes=("lung opacity",),
        architecture=layout,
        preprocessing=preparation(params),
        postprocessing=post_processing(params),
        operating_threshold=threshold,
        best_epoch=best.epoch,
        val_map=best.score,
    )
    save_model(models, model, config)
    return config


def architecture(params: Params, train_data: SplitData) -> Architecture:
    """The ``model`` section without what only matters before training, and the anchors that it asks for."""
    section = params.model
    shapes = shape_grid(section.anchor_scales, section.anchor_ratios)
    if section.anchors == "fit":
        boxes = np.concatenate(train_data.prepared_boxes())
        if not len(boxes):
            raise UserError("model.anchors = 'fit': the train split has no box to fit anchors to; set grid")
        shapes = fit_shapes(boxes, len(shapes), params.seed)
    return Architecture(
        backbone=section.backbone,
        norm=section.norm,
        fpn_channels=section.fpn_channels,
        p6_source=section.p6_source,
        head_convs=section.head_convs,
        head_norm=section.head_norm,
        anchor_shapes=shapes,
        prior_probability=section.prior_probability,
        in_channels=len(params.preprocess.channels),
        mask_head=bool(params.loss.mask),
        image_classes=len(IMAGE_CLASSES) if params.loss.image_class else 0,
    )


def post_processing(params: Params) -> PostProcessing:
    """The ``evaluate`` section as the detector takes it."""
    return PostProcessing(**params.evaluate.model_dump(exclude={"bootstrap_draws"}))


def results_in_prepared_pixels(found: Sequence[Detections], data: SplitData) -> list[ImageResult]:
    """Detections beside the true boxes, both in pixels of the prepared images."""
    return [
        image_result(one["boxes"].numpy(), one["scores"].numpy(), boxes)
        for one, boxes in zip(found, data.prepared_boxes(), strict=True)
    ]


def val_metrics(found: Sequence[Detections], data: SplitData) -> dict[str, float]:
    """What epochs are compared by: COCO's mAP, and the RSNA score at the threshold that is best for it."""
    results = results_in_prepared_pixels(found, data)
    threshold, score = best_threshold(results)
    return {**coco_map(results), "rsna_score": score, "best_threshold": threshold}


def epoch_hooks(
    run: TrackedRun, val_data: SplitData, note: Callable[[Mapping[str, float], int], None] | None = None
) -> Hooks:
    """Log steps and epochs to the run; ``note`` is given each epoch's val metrics too. Epochs compete by mAP."""

    def on_epoch(found: list[Detections], epoch: int) -> float:
        values = val_metrics(found, val_data)
        if note:
            note(values, epoch)
        run.log_metrics({f"val/{name}": value for name, value in values.items()}, step=epoch + 1)
        logger.info(
            "  val map %.3f  map_50 %.3f  rsna_score %.3f", values["map"], values["map_50"], values["rsna_score"]
        )
        return values["map"]

    return Hooks(run.log_metrics, on_epoch, before_checkpoint=run.flush, stop_requested=lambda: run.stopping.asked)


def log_anchor_coverage(run: TrackedRun, params: Params, layout: Architecture, train_data: SplitData) -> None:
    """Say how well the anchors suit the train boxes, before time is spent on training."""
    size = params.preprocess.image_size
    anchors = make_anchors(size, size, layout.anchor_shapes)
    found = coverage(anchors, train_data.prepared_boxes(), params.loss.fg_iou_thresh, params.seed)
    missed = int((found.best_iou < found.fg_iou_thresh).sum())
    logger.info("anchors reach %.1f %% of the train boxes:\n%s", 100 * found.covered, found.table().rstrip())
    if missed:
        logger.warning(
            "%d of %d train boxes are reached by no anchor (IoU < %g); set model.anchors: fit, or other"
            " anchor_scales and anchor_ratios",
            missed, len(found.best_iou), found.fg_iou_thresh,
        )  # fmt: skip
    shapes = torch.cat([anchor_sizes(stride, layout.anchor_shapes) for stride in LEVEL_STRIDES])
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "coverage.csv").write_text(found.table())
        picture = plot_anchor_coverage(found.sizes, found.best_iou, shapes.numpy())
        (Path(folder) / "coverage.png").write_bytes(picture)
        run.log_files(Path(folder), "anchors")


def log_datasets(run: TrackedRun, params: Params, splits: dict[str, SplitData]) -> None:
    """Link the run to the version of the data that it saw."""
    raw = params.data.dir
    digest = provenance.input_hashes().get(raw, "")
    run.log_dataset(Path(raw).name, digest, raw, {name: len(part.index) for name, part in splits.items()})


def run_tags(params: Params) -> dict[str, str]:
    """Which code, which data, and which flow made the run."""
    tags = provenance.git_state() | {f"dvc.{path}": value for path, value in provenance.input_hashes().items()}
    if flow_run := os.environ.get("PNEUMOFLOW_FLOW_RUN_ID"):
        tags["prefect_flow_run_id"] = flow_run
    loss, size = params.loss.classification, params.preprocess.image_size
    return tags | {
        "mlflow.runName": f"{params.model.backbone} {size}px {loss}",
        "mlflow.source.name": "pipeline.stages.train",
    }


def training_fingerprint(params: Params) -> str:
    """What makes two training runs the same: params, data and code."""
    whole = dict.fromkeys(("seed", "model", "loss", "augment", "train", "evaluate"), True)
    sections: Any = whole | {"preprocess": {"image_size", "clahe", "channels"}}  # not by whom they were prepared
    package = Path(__file__).resolve().parent.parent
    code = [Path(__file__), *sorted((package / "detection").glob("*.py"))]
    data = [*sorted(path for path in PREPARED.iterdir() if path.is_file()), SPLITS_FILE]
    return provenance.fingerprint(params.model_dump(mode="json", include=sections), [*code, *data])


def main() -> None:
    """Run the stage on ``params.yaml``."""
    keep_freed_memory()
    train(load_params())


if __name__ == "__main__":
    run_main(main)
