"""Detections of a whole data set."""

import math
from collections.abc import Callable, Iterator

import torch
from lightning_fabric import Fabric
from torch import Tensor
from torch.utils.data import DataLoader

from pipeline.detection.dataset import PADDING_INDEX, Batch, DetectionDataset, EpochBatches, Example, make_loader
from pipeline.detection.detect import Detector, NotFiniteError, detect
from pipeline.detection.postprocess import Detections
from pipeline.detection.settings import PostProcessing
from pipeline.errors import UserError


@torch.no_grad()
def predict(
    fabric: Fabric,
    model: Detector,
    data: DetectionDataset,
    batch_size: int,
    post_processing: PostProcessing,
    on_batch: Callable[[], None] | None = None,
) -> list[Detections]:
    """Return the detections of every image of ``data``, in its order, on the CPU; the model's mode is kept.

    In a run of several processes, each takes its part, and all get the whole result. ``on_batch`` is
    called after each batch; an exception that it raises ends the work.

    Raises:
        UserError: outputs of the model are not finite; every process raises it, if one finds any.
    """
    was_training = model.training
    model.eval()
    own = EpochBatches(len(data), batch_size, 0, False, fabric.global_rank, fabric.world_size)
    results: list[Detections] = []
    indices: list[Tensor] = []
    bad: list[int] = []
    for batch in _batches(make_loader(data, own, workers=0)):
        images = batch.images.to(fabric.device)
        try:
            with fabric.autocast():
                detections = detect(model, images, post_processing)
        except NotFiniteError as error:
            bad += [index for index in batch.indices[error.indices].tolist() if index != PADDING_INDEX]
            detections = [{} for _ in images]
        results += [{name: value.cpu() for name, value in one.items()} for one in detections]
        indices.append(batch.indices)
        if on_batch:
            on_batch()
    model.train(was_training)
    _require_none(fabric, data, bad)
    if fabric.world_size == 1:
        return results
    return _gathered(fabric, results, torch.cat(indices), len(data), post_processing.detections_per_img)


def _require_none(fabric: Fabric, data: DetectionDataset, bad: list[int]) -> None:
    """Refuse outputs that are not finite, after all batches: a process that left earlier would keep others waiting."""
    count = len(bad)
    if fabric.world_size > 1:
        everywhere = torch.tensor(float(count), device=fabric.device)
        torch.distributed.all_reduce(everywhere)
        count = int(everywhere)
    if count:
        names = ", ".join(data.names_of(bad[:5])) or "those of another process"
        raise UserError(
            f"the outputs of the model are not finite for {count} of {len(data)} studies: {names}; in training,"
            " lower train.lr, or set train.precision to 32-true"
        )


def _gathered(fabric: Fabric, detections: list[Detections], indices: Tensor, count: int, most: int) -> list[Detections]:
    """Return the detections of all processes, in the order of the data set."""
    # Every process sends the same number of rows: even with padding, it has no more images than the data set.
    packed = torch.full((count, most, 7), math.nan)
    packed[:, 0, 5] = -1.0  # the position in the data set; -1: no image
    for row, (one, index) in enumerate(zip(detections, indices.tolist(), strict=True)):
        packed[row, : len(one["boxes"]), :4] = one["boxes"]
        packed[row, : len(one["scores"]), 4] = one["scores"]
        packed[row, : len(one["labels"]), 6] = one["labels"].float()
        packed[row, 0, 5] = index
    shares = [torch.empty_like(packed, device=fabric.device) for _ in range(fabric.world_size)]
    torch.distributed.all_gather(shares, packed.to(fabric.device))
    everyone = torch.cat(shares).cpu()
    results: list[Detections] = [{} for _ in range(count)]
    for one in everyone[everyone[:, 0, 5] >= 0]:
        kept = one[torch.isfinite(one[:, 4])]
        results[int(one[0, 5])] = {"boxes": kept[:, :4], "scores": kept[:, 4], "labels": kept[:, 6].long()}
    return results


def _batches(loader: DataLoader[Example]) -> Iterator[Batch]:
    yield from loader
