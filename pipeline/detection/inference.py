"""Detections of a whole data set."""

import math
from collections.abc import Callable, Iterator

import torch
from lightning_fabric import Fabric
from torch import Tensor
from torch.utils.data import DataLoader

from pipeline.detection.dataset import Batch, DetectionDataset, EpochBatches, Example, make_loader
from pipeline.detection.postprocess import Detections, PostProcessing, find
from pipeline.detection.retinanet import RetinaNet


@torch.no_grad()
def predict(
    fabric: Fabric,
    model: RetinaNet,
    data: DetectionDataset,
    batch_size: int,
    rules: PostProcessing,
    on_batch: Callable[[], None] | None = None,
) -> list[Detections]:
    """Detections of every image of ``data``, in its order, on the CPU; the model's mode is kept.

    Of several processes each takes its part, and all get all of it. ``on_batch`` is called after each
    batch; what it raises ends the work.
    """
    was_training = model.training
    model.eval()
    own = EpochBatches(len(data), batch_size, 0, False, fabric.global_rank, fabric.world_size)
    results: list[Detections] = []
    places: list[Tensor] = []
    for batch in _batches(make_loader(data, own, workers=0)):
        images = batch.images.to(fabric.device)
        with fabric.autocast():
            found = find(model, images, rules)
        results += [{name: value.cpu() for name, value in one.items()} for one in found]
        places.append(batch.indices)
        if on_batch:
            on_batch()
    model.train(was_training)
    if fabric.world_size == 1:
        return results
    return _gathered(fabric, results, torch.cat(places), len(data), rules.detections_per_img)


def _gathered(fabric: Fabric, found: list[Detections], places: Tensor, count: int, most: int) -> list[Detections]:
    """The detections of all processes, in the order of the data set."""
    # As many rows everywhere: a process has at most as many images as if all but it had only padding.
    packed = torch.full((count, most, 6), math.nan)
    packed[:, 0, 5] = -1.0  # the place in the data set; -1: nothing
    for row, (one, place) in enumerate(zip(found, places.tolist(), strict=True)):
        packed[row, : len(one["boxes"]), :4] = one["boxes"]
        packed[row, : len(one["scores"]), 4] = one["scores"]
        packed[row, 0, 5] = place
    shares = [torch.empty_like(packed, device=fabric.device) for _ in range(fabric.world_size)]
    torch.distributed.all_gather(shares, packed.to(fabric.device))
    everyone = torch.cat(shares).cpu()
    results: list[Detections] = [{} for _ in range(count)]
    for one in everyone[everyone[:, 0, 5] >= 0]:
        kept = one[torch.isfinite(one[:, 4])]
        labels = torch.zeros(len(kept), dtype=torch.int64)
        results[int(one[0, 5])] = {"boxes": kept[:, :4], "scores": kept[:, 4], "labels": labels}
    return results


def _batches(loader: DataLoader[Example]) -> Iterator[Batch]:
    yield from loader
