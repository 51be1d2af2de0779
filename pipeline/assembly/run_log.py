"""The records that a training run writes to MLflow."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
import yaml

from pipeline import provenance
from pipeline.assembly.inputs import SplitData
from pipeline.assembly.run_identity import data_version, read_run_id
from pipeline.assembly.validation import epoch_score, threshold_keys, val_metrics
from pipeline.detection.anchor_fit import coverage
from pipeline.detection.anchors import LEVEL_STRIDES, anchor_sizes, make_anchors
from pipeline.detection.postprocess import Detections
from pipeline.detection.settings import Architecture
from pipeline.files import temporary_folder, write_json
from pipeline.params import Params
from pipeline.paths import RUN_FILE
from pipeline.reports.anchor_plot import plot_anchor_coverage
from pipeline.reports.drawing import captions, contact_sheet, draw_boxes, encode_jpeg
from pipeline.tracking import TrackedRun, tracked_run
from pipeline.training.trainer import Hooks

logger = logging.getLogger(__name__)

_PICTURE_SIDE = 320


@contextmanager
def run_of(folder: Path, tags: Mapping[str, str]) -> Iterator[TrackedRun]:
    """Open the MLflow run that the checkpoints in ``folder`` belong to; a new one if there are none yet.

    Raises:
        UserError: the folder names no run, or MLflow's store cannot be used.
    """
    file = folder / RUN_FILE
    former = read_run_id(file) if file.exists() else None
    with tracked_run(former, tags) as run:
        write_json(file, {"run_id": run.run_id})
        yield run


def log_start(
    run: TrackedRun, params: Params, architecture: Architecture, splits: dict[str, SplitData], *, named: bool
) -> None:
    """Log the facts that are known before the first step: params, environment, data, and the anchors' coverage.

    A run that is not ``named`` yet gets a name.
    """
    run.log_params(params.model_dump(mode="json"))
    if not named:
        run.name_by_changes(f"{params.model.backbone} {params.preprocess.image_size}px {params.loss.classification}")
    run.log_text(yaml.safe_dump(params.model_dump(mode="json"), sort_keys=False), "params.yaml")
    run.log_text(provenance.environment(), "environment.txt")
    log_datasets(run, params, splits)
    log_anchor_coverage(run, params, architecture, splits["train"])


def epoch_hooks(
    run: TrackedRun,
    val_data: SplitData,
    note: Callable[[Mapping[str, float], int], None] | None = None,
    picture_epochs: int = 0,
) -> Hooks:
    """Return hooks that log steps and epochs, and pictures of val every ``picture_epochs`` epochs; mAP ranks epochs.

    ``note`` receives each epoch's val metrics too.
    """

    def on_epoch(detections: list[Detections], epoch: int) -> float:
        values = val_metrics(detections, val_data)
        if note:
            note(values, epoch)
        run.log_metrics({f"val/{name}": value for name, value in values.items()}, step=epoch + 1)
        if picture_epochs and (epoch + 1) % picture_epochs == 0:
            run.log_pictures({f"val/epoch-{epoch + 1:04d}.jpg": _val_pictures(detections, val_data, values)})
        logger.info(
            "  val map %.3f  map_50 %.3f  rsna_score %.3f", values["map"], values["map_50"], values["rsna_score"]
        )
        return epoch_score(values)

    return Hooks(run.log_metrics, on_epoch, before_checkpoint=run.flush, stop_requested=lambda: run.stopping.asked)


def _val_pictures(detections: Sequence[Detections], data: SplitData, values: Mapping[str, float]) -> bytes:
    """Draw val's first studies with a box, and some without, with detections above the epoch's best thresholds."""
    thresholds = np.array([values[key] for key in threshold_keys(data.classes)])
    truth = data.prepared_boxes()
    chosen = [index for index, boxes in enumerate(truth) if len(boxes)][:7]
    chosen += [index for index, boxes in enumerate(truth) if not len(boxes)][: 8 - len(chosen)]
    pictures = []
    for index in chosen:
        boxes, scores, labels = (detections[index][name].numpy() for name in ("boxes", "scores", "labels"))
        kept = scores > thresholds[labels]
        image = np.atleast_3d(data.images[index])[..., 0]
        names = captions(labels[kept], data.classes), captions(data.labels[index], data.classes)
        pictures.append(draw_boxes(image, boxes[kept], scores[kept], truth[index], _PICTURE_SIDE, *names))
    return encode_jpeg(contact_sheet(pictures, 4))


def log_anchor_coverage(run: TrackedRun, params: Params, architecture: Architecture, train_data: SplitData) -> None:
    """Log how well the anchors suit the train boxes, before time is spent on training."""
    size = params.preprocess.image_size
    anchors = make_anchors(size, size, architecture.anchor_shapes)
    reached = coverage(anchors, train_data.prepared_boxes(), params.loss.fg_iou_thresh, params.seed)
    missed = int((reached.best_iou < reached.fg_iou_thresh).sum())
    logger.info("anchors reach %.1f %% of the train boxes:\n%s", 100 * reached.covered, reached.table().rstrip())
    if missed:
        logger.warning(
            "%d of %d train boxes are reached by no anchor (IoU < %g); set model.anchors: fit, or other"
            " anchor_scales and anchor_ratios",
            missed, len(reached.best_iou), reached.fg_iou_thresh,
        )  # fmt: skip
    shapes = torch.cat([anchor_sizes(stride, architecture.anchor_shapes) for stride in LEVEL_STRIDES])
    with temporary_folder() as folder:
        (folder / "coverage.csv").write_text(reached.table())
        picture = plot_anchor_coverage(reached.sizes, reached.best_iou, shapes.numpy())
        (folder / "coverage.png").write_bytes(picture)
        run.log_files(folder, "anchors")


def log_datasets(run: TrackedRun, params: Params, splits: dict[str, SplitData]) -> None:
    """Link the run to the version of the data that it uses."""
    run.log_dataset(data_version(params), {name: len(part.index) for name, part in splits.items()})
