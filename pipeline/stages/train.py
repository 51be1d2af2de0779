"""Stage ``train``: prepared images and splits -> a RetinaNet, its thresholds and its MLflow run."""

import logging
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path

from lightning_fabric import Fabric

from pipeline.assembly.inputs import SplitData, read_inputs
from pipeline.assembly.run_log import epoch_hooks, log_start, run_of, run_tags
from pipeline.assembly.training import architecture_of, build_trainer, finish, training_fingerprint
from pipeline.delivery.model_file import save_seen
from pipeline.detection.device import is_lost_connection, make_fabric, used_precision, world_size
from pipeline.detection.settings import Architecture
from pipeline.errors import UserError, run_main
from pipeline.files import write_json
from pipeline.folder_lock import only_run_of
from pipeline.params import Params, load_params
from pipeline.paths import CHECKPOINTS, MODELS, RUN_FILE, SPLITS_FILE
from pipeline.ranks import rank
from pipeline.stopping import stop_signals
from pipeline.tracking import require_registry
from pipeline.training.ended import ENDED, drop_ended
from pipeline.training.launch import launch
from pipeline.training.malloc import keep_freed_memory
from pipeline.training.profiling import PROFILE
from pipeline.training.trainer import Hooks, Trainer

logger = logging.getLogger(__name__)


def train(params: Params, models: Path = MODELS, checkpoints: Path = CHECKPOINTS) -> None:
    """Train, keep the best epoch, choose the operating point on val, and log it all.

    An interrupted run with the same params, data and code continues from its last checkpoint. In a run
    of several processes, all train, and the first does the rest.
    """
    splits = read_inputs(params.preprocess)
    for name in ("train", "val"):
        if not sum(len(boxes) for boxes in splits[name].boxes):
            raise UserError(
                f"{SPLITS_FILE}: no study of {name} has a box; training and the choice of the threshold need some"
            )
    folder = checkpoints / training_fingerprint(params)
    fabric = make_fabric(params.train.accelerator, params.train.precision)
    architecture = architecture_of(params, splits["train"])
    if not fabric.is_global_zero:
        _train_along(params, fabric, architecture, splits, folder)
        return
    drop_ended(checkpoints, except_for=folder)
    if not folder.exists() and checkpoints.is_dir() and any(checkpoints.iterdir()):
        logger.info("%s: made with other params, data or code; this run starts afresh", checkpoints)
    require_registry()
    # The tag says which precision is used; the params say which one was asked for.
    tags = run_tags(params) | {"precision": used_precision(params.train.accelerator, params.train.precision)}
    with run_of(folder, tags) as run:
        log_start(run, params, architecture, splits)
        trainer = build_trainer(params, fabric, architecture, splits["train"], splits["val"], folder)
        if trainer.resume():
            _say_where(trainer, folder, params)
        with run.system_metrics(), run.stopping.deferred():
            best = trainer.fit(epoch_hooks(run, splits["val"], picture_epochs=params.train.picture_epochs))
        if (folder / PROFILE).exists():
            run.log_files(folder / PROFILE, PROFILE)
        config = finish(params, architecture, best, splits["val"], models)
        rules = config.postprocessing
        chosen = {"nms_thresh": rules.nms_thresh, "box_shrink": rules.box_shrink}
        chosen["operating_threshold"] = config.operating_threshold
        chosen_values = {f"val/{name}": value for name, value in chosen.items()}
        run.log_metrics(chosen_values, step=params.train.epochs, correct=True)  # other candidates may give others
        save_seen(models, [*splits["train"].index["groupId"], *splits["val"].index["groupId"]])
        write_json(models / RUN_FILE, {"run_id": run.run_id})
    write_json(folder / ENDED, {})
    logger.info("best epoch %d, val map %.3f, threshold %.3f", best.epoch + 1, best.score, config.operating_threshold)


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


def main() -> None:
    """Run the stage on ``params.yaml`` in ``train.devices`` processes, unless torchrun has started this process."""
    params = load_params()
    if params.train.devices > 1 and world_size() == 1:
        launch("pipeline.stages.train", params.train.devices, params.train.restarts)
        return
    if rank():
        logging.disable(logging.INFO)
    keep_freed_memory()
    try:
        # In a run of several processes, the first holds the lock.
        with nullcontext() if rank() else only_run_of("train"):
            train(params)
    except RuntimeError as error:
        if world_size() == 1 or not is_lost_connection(error):
            raise
        logger.warning("process %s: another process of this run is gone", rank())
        raise SystemExit(1) from None


if __name__ == "__main__":
    run_main(main)
