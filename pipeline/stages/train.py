"""Stage ``train``: prepared images and splits -> a RetinaNet, its thresholds and its MLflow run."""

import logging
import shutil
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric

from pipeline import provenance
from pipeline.data.manifest import MANIFEST
from pipeline.delivery.model_file import FORMAT_VERSION, ModelConfig, save_model, save_seen
from pipeline.detection.anchor_fit import fit_shapes
from pipeline.detection.anchors import shape_grid
from pipeline.detection.augment import Augmenter, AugmentSettings
from pipeline.detection.device import is_lost_connection, make_fabric, used_precision, world_size
from pipeline.detection.engine import Best, Hooks, Trainer
from pipeline.detection.extra_losses import ExtraLosses
from pipeline.detection.losses import DetectionLoss, LossSettings
from pipeline.detection.mask_losses import MaskSettings
from pipeline.detection.memory import keep_freed_memory
from pipeline.detection.postprocess import PostProcessing
from pipeline.detection.profiling import PROFILE
from pipeline.detection.retinanet import Architecture, RetinaNet
from pipeline.detection.settings import TrainSettings
from pipeline.detection.weights import start_from
from pipeline.errors import UserError, run_main
from pipeline.files import write_json
from pipeline.folder_lock import only_run_of
from pipeline.params import Params, load_params
from pipeline.ranks import rank
from pipeline.stages.inputs import IMAGE_CLASSES, SplitData, read_inputs
from pipeline.stages.launch import launch
from pipeline.stages.operating_point import choose_operating_point
from pipeline.stages.preprocess import PREPARED, preparation
from pipeline.stages.run_log import epoch_hooks, log_start, read_run_id, run_tags
from pipeline.stages.split import SPLITS_FILE
from pipeline.stopping import stop_signals
from pipeline.tracking import require_registry, tracked_run

logger = logging.getLogger(__name__)

MODELS = Path("models")
CHECKPOINTS = Path("checkpoints")
RUN_FILE = "mlflow_run.json"
# This file marks the checkpoints of a training that has ended. The stage `evaluate` removes them. Until then DVC can
# be killed before it has recorded the model; it then deletes the model and runs `train` again, which makes the same
# model from these checkpoints.
_ENDED = "ended"
_CODE = ("operating_point.py", "run_log.py", "train.py")
_NOT_THE_LOOPS = {"precision", "accelerator", "picture_epochs", "devices", "restarts"}
_EXTRA_LOSSES = {"mask", "tversky_beta", "distance_w0", "distance_sigma", "image_class"}


def train(params: Params, models: Path = MODELS, checkpoints: Path = CHECKPOINTS) -> None:
    """Train, keep the best epoch, choose the operating threshold on val, and log it all.

    An interrupted run with the same params, data and code goes on after its last checkpoint. Of
    several processes all train, and the first does all the rest.
    """
    splits = read_inputs(params.preprocess)
    for name in ("train", "val"):
        if not sum(len(boxes) for boxes in splits[name].boxes):
            raise UserError(f"{SPLITS_FILE}: no study of {name} has a box; training needs some, and so does choosing")
    folder = checkpoints / training_fingerprint(params)
    fabric = make_fabric(params.train.accelerator, params.train.precision)
    layout = architecture(params, splits["train"])
    if not fabric.is_global_zero:
        _train_along(params, fabric, layout, splits, folder)
        return
    run_file = folder / RUN_FILE
    drop_ended(checkpoints, except_for=folder)
    if not folder.exists() and checkpoints.is_dir() and any(checkpoints.iterdir()):
        logger.info("%s: of other params, data or code; this run starts afresh", checkpoints)
    former = read_run_id(run_file) if run_file.exists() else None
    require_registry()
    # The params say which precision was asked for.
    tags = run_tags(params) | {"precision": used_precision(params.train.accelerator, params.train.precision)}
    with tracked_run(former, tags) as run:
        write_json(run_file, {"run_id": run.run_id})
        log_start(run, params, layout, splits)
        trainer = build_trainer(params, fabric, layout, splits["train"], splits["val"], folder)
        if trainer.resume():
            _say_where(trainer, folder, params)
        with run.system_metrics(), run.stopping.deferred():
            best = trainer.fit(epoch_hooks(run, splits["val"], picture_epochs=params.train.picture_epochs))
        if (folder / PROFILE).exists():
            run.log_files(folder / PROFILE, PROFILE)
        config = finish(params, layout, best, splits["val"], models)
        rules = config.postprocessing
        chosen = {"nms_thresh": rules.nms_thresh, "box_shrink": rules.box_shrink}
        chosen["operating_threshold"] = config.operating_threshold
        run.log_metrics({f"val/{name}": value for name, value in chosen.items()}, step=params.train.epochs)
        save_seen(models, [*splits["train"].index["groupId"], *splits["val"].index["groupId"]])
        write_json(models / RUN_FILE, {"run_id": run.run_id})
    write_json(folder / _ENDED, {})
    logger.info("best epoch %d, val map %.3f, threshold %.3f", best.epoch + 1, best.score, config.operating_threshold)


def _say_where(trainer: Trainer, folder: Path, params: Params) -> None:
    if (folder / _ENDED).exists():
        logger.info("%s: trained to the end before, but not recorded by DVC; that result is used", folder)
        return
    logger.info("going on with step %d of epoch %d of %d", trainer.position + 1, trainer.epoch + 1, params.train.epochs)


def drop_ended(checkpoints: Path = CHECKPOINTS, except_for: Path | None = None) -> None:
    """Remove the checkpoints of trainings that have ended: only what was interrupted is resumed."""
    for mark in checkpoints.glob(f"*/{_ENDED}"):
        if mark.parent != except_for:
            shutil.rmtree(mark.parent)


def _train_along(
    params: Params, fabric: Fabric, layout: Architecture, splits: Mapping[str, SplitData], folder: Path
) -> None:
    """What the other processes do: the same steps, and no word."""
    with stop_signals() as stopping:
        trainer = build_trainer(params, fabric, layout, splits["train"], splits["val"], folder)
        trainer.resume()
        hooks = Hooks(lambda *_: None, lambda *_: 0.0, stop_requested=lambda: stopping.asked)
        with stopping.deferred():
            trainer.fit(hooks)


def build_trainer(
    params: Params, fabric: Fabric, layout: Architecture, train_data: SplitData, val_data: SplitData, folder: Path
) -> Trainer:
    """Assemble a `Trainer` from the params."""
    torch.manual_seed(params.seed)
    section = params.loss
    model = RetinaNet(layout, params.model.weights)
    start_from(model, params.model.weights)
    model.backbone.freeze(params.model.frozen_stages)
    augmenter = Augmenter(AugmentSettings(**params.augment.model_dump()))
    loop = params.train.model_dump(exclude=_NOT_THE_LOOPS)
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
    """Choose the operating point on val and write the model."""
    model = RetinaNet(layout)
    model.load_state_dict(best.weights)
    # float32 as at inference, whatever precision the training had.
    fabric = make_fabric(params.train.accelerator, "32-true", alone=True)
    fabric.to_device(model)
    rules, threshold = choose_operating_point(params, fabric, model, post_processing(params), val_data)
    config = ModelConfig(
        format_version=FORMAT_VERSION,
        classes=("lung opacity",),
        architecture=layout,
        preprocessing=preparation(params),
        postprocessing=rules,
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
    return PostProcessing(**params.evaluate.model_dump(exclude={"bootstrap_draws", "candidates"}))


def training_fingerprint(params: Params) -> str:
    """What makes two training runs the same: params, data and code."""
    whole = dict.fromkeys(("seed", "model", "loss", "augment", "train", "evaluate"), True)
    sections: Any = whole | {"preprocess": {"image_size", "clahe", "channels"}}  # not by whom they were prepared
    package = Path(__file__).resolve().parent.parent
    code = [*(Path(__file__).with_name(name) for name in _CODE), *sorted((package / "detection").glob("*.py"))]
    data = [PREPARED / MANIFEST, SPLITS_FILE]  # the manifest has the digests of all else
    return provenance.fingerprint(params.model_dump(mode="json", include=sections), [*code, *data])


def main() -> None:
    """Run the stage on ``params.yaml``; in ``train.devices`` processes, unless torchrun has started this one."""
    params = load_params()
    if params.train.devices > 1 and world_size() == 1:
        launch("pipeline.stages.train", params.train.devices, params.train.restarts)
        return
    if rank():
        logging.disable(logging.INFO)
    keep_freed_memory()
    try:
        # Of the processes of one run the first holds the lock.
        with nullcontext() if rank() else only_run_of("train"):
            train(params)
    except RuntimeError as error:
        if world_size() == 1 or not is_lost_connection(error):
            raise
        logger.warning("process %s: another process of this run is gone", rank())
        raise SystemExit(1) from None


if __name__ == "__main__":
    run_main(main)
