"""Stage ``train``: prepared images and splits -> a RetinaNet, its thresholds and its MLflow run."""

import argparse
import logging
import sys
from collections.abc import Mapping
from contextlib import nullcontext
from functools import partial
from pathlib import Path

from lightning_fabric import Fabric

from pipeline.assembly.inputs import SplitData, read_inputs
from pipeline.assembly.run_identity import read_run_id, run_tags
from pipeline.assembly.run_log import epoch_hooks, log_start, run_of
from pipeline.assembly.training import (
    architecture_of,
    build_trainer,
    finish,
    pretraining_leak,
    training_fingerprint,
    without_unreachable_weights,
)
from pipeline.delivery.model_config import LEAK
from pipeline.delivery.seen_patients import save_seen
from pipeline.detection.device import is_lost_connection, make_fabric, used_precision, world_size
from pipeline.detection.malloc import keep_freed_memory
from pipeline.detection.settings import Architecture
from pipeline.errors import UserError, run_main
from pipeline.files import write_json
from pipeline.folder_lock import only_run_of
from pipeline.params import Params, load_params
from pipeline.paths import CHECKPOINTS, CROSSVAL, MODELS, RUN_FILE, SPLITS_FILE
from pipeline.ranks import rank
from pipeline.stopping import stop_signals
from pipeline.tracking import (
    FINAL,
    PARENT,
    TRAINING,
    TrackedRun,
    copied_checkpoints,
    fetch_copies,
    find_copies,
    require_registry,
)
from pipeline.training.checkpoint import snapshot
from pipeline.training.ended import ENDED, drop_ended
from pipeline.training.launch import launch
from pipeline.training.profiling import PROFILE
from pipeline.training.trainer import Best, Hooks, Trainer

logger = logging.getLogger(__name__)


def train(
    params: Params,
    models: Path = MODELS,
    checkpoints: Path = CHECKPOINTS,
    fold: int | None = None,
    tags: Mapping[str, str] | None = None,
) -> None:
    """Train, keep the best epoch, choose the operating point on val, and log it all.

    An interrupted run with the same params, data and code continues from its last checkpoint. In a run
    of several processes, all train, and the first does the rest. With ``fold``, that fold is val.
    """
    params = without_unreachable_weights(params)
    leak = pretraining_leak(params)
    if leak:
        logger.warning("%s %s", params.model.backbone, LEAK)
    splits = read_inputs(params, fold=fold)
    for name in ("train", "val"):
        if not sum(len(boxes) for boxes in splits[name].boxes):
            raise UserError(
                f"{SPLITS_FILE}: no study of {name} has a box; training and the choice of the threshold need some"
            )
    folder = checkpoints / training_fingerprint(params, fold)
    fabric = make_fabric(params.train.accelerator, params.train.precision)
    architecture = architecture_of(params, splits["train"])
    if not fabric.is_global_zero:
        _train_along(params, fabric, architecture, splits, folder)
        return
    drop_ended(checkpoints, except_for=folder)
    if not folder.exists() and checkpoints.is_dir() and any(checkpoints.iterdir()):
        logger.info("%s: made with other params, data or code; this run starts afresh", checkpoints)
    require_registry()
    if params.train.checkpoint_store:
        _take_up(folder)
    # The tag says which precision is used; the params say which one was asked for.
    used = {"precision": used_precision(params.train.accelerator, params.train.precision)}
    used |= {TRAINING: folder.name} | ({"pretraining_leak": LEAK} if leak else {})
    with run_of(folder, run_tags(params) | used | dict(tags or {})) as run:
        log_start(run, params, architecture, splits, named="mlflow.runName" in (tags or {}))
        trainer = build_trainer(params, fabric, architecture, splits["train"], splits["val"], folder)
        if trainer.resume():
            _say_where(trainer, folder, params)
        # Until the model is written: a machine that is lost a moment before has copies to go on from.
        with copied_checkpoints(run, folder, partial(snapshot, folder), params.train.checkpoint_store):
            with run.system_metrics(), run.stopping.deferred():
                best = trainer.fit(epoch_hooks(run, splits["val"], picture_epochs=params.train.picture_epochs))
            if (folder / PROFILE).exists():
                run.log_files(folder / PROFILE, PROFILE)
            threshold = _write_model(run, params, architecture, best, splits, models)
    write_json(folder / ENDED, {})
    logger.info("best epoch %d, val map %.3f, threshold %s", best.epoch + 1, best.score, threshold)


def _write_model(
    run: TrackedRun,
    params: Params,
    architecture: Architecture,
    best: Best,
    splits: Mapping[str, SplitData],
    models: Path,
) -> str:
    """Write the model of the best epoch, and note the operating point; return its threshold in words."""
    config = finish(params, architecture, best, splits["val"], models)
    rules = config.postprocessing
    chosen = {rules.overlap_key: getattr(rules, rules.overlap_key), "box_shrink": rules.box_shrink}
    thresholds = config.thresholds
    names = [""] if len(thresholds) == 1 else [f"/{name}" for name in config.classes]
    chosen |= {f"operating_threshold{name}": value for name, value in zip(names, thresholds, strict=True)}
    chosen_values = {f"val/{name}": value for name, value in chosen.items()}
    run.log_metrics(chosen_values, step=FINAL, correct=True)  # other candidates may give others
    save_seen(models, [*splits["train"].index["groupId"], *splits["val"].index["groupId"]])
    write_json(models / RUN_FILE, {"run_id": run.run_id})
    return ", ".join(f"{threshold:.3f}" for threshold in thresholds)


def _take_up(folder: Path) -> None:
    """Fetch the checkpoints of a run that began the same training on another machine, and was killed there."""
    if folder.exists() or (run_id := find_copies(folder.name)) is None:
        return
    logger.info("taking up MLflow run %s, which began this training elsewhere", run_id)
    folder.parent.mkdir(parents=True, exist_ok=True)
    fetch_copies(run_id, folder)
    write_json(folder / RUN_FILE, {"run_id": run_id})


def _say_where(trainer: Trainer, folder: Path, params: Params) -> None:
    if (folder / ENDED).exists():
        logger.info(
            "the training with these params, data and code has ended before: its best epoch is used (remove %s to train"
            " anew)",
            folder,
        )
        return
    logger.info(
        "continuing with step %d of epoch %d of %d", trainer.position + 1, trainer.epoch + 1, params.train.epochs
    )


def _train_along(
    params: Params, fabric: Fabric, architecture: Architecture, splits: Mapping[str, SplitData], folder: Path
) -> None:
    """Train in the processes other than the first: the same steps, but nothing is logged."""
    with stop_signals() as stopping:
        trainer = build_trainer(params, fabric, architecture, splits["train"], splits["val"], folder)
        trainer.resume()
        hooks = Hooks(lambda *_: None, lambda *_: 0.0, stop_requested=lambda: stopping.asked)
        with stopping.deferred():
            trainer.fit(hooks)


def train_fold(params: Params, fold: int) -> None:
    """Train with one fold as val, for a cross-validation; see `pipeline.jobs.crossval`."""
    folder = CROSSVAL / f"fold{fold}"
    tags = {"mlflow.runName": f"fold {fold}", "fold": str(fold)}
    parent = CROSSVAL / RUN_FILE
    if parent.exists():
        tags[PARENT] = read_run_id(parent)
    train(params, folder, CROSSVAL / CHECKPOINTS / folder.name, fold, tags)


def _run(params: Params, fold: int | None) -> None:
    name = "train" if fold is None else f"train fold {fold}"
    # In a run of several processes, the first holds the lock.
    with nullcontext() if rank() else only_run_of(name):
        train(params) if fold is None else train_fold(params, fold)


def main() -> None:
    """Run the stage on ``params.yaml`` in ``train.devices`` processes, unless torchrun has started this process."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.stages.train", description=__doc__)
    parser.add_argument("--fold", type=int, help="the fold that is val, for `pneumoflow crossval`")
    fold = parser.parse_args().fold
    params = load_params()
    if params.train.devices > 1 and world_size() == 1:
        launch("pipeline.stages.train", sys.argv[1:], params.train.devices, params.train.restarts)
        return
    if rank():
        logging.disable(logging.INFO)
    keep_freed_memory()
    try:
        _run(params, fold)
    except RuntimeError as error:
        if world_size() == 1 or not is_lost_connection(error):
            raise
        logger.warning("process %s: another process of this run is gone", rank())
        raise SystemExit(1) from None


if __name__ == "__main__":
    run_main(main)
