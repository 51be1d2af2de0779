"""Detections of a whole data set."""

from collections.abc import Callable, Iterator

import torch
from lightning_fabric import Fabric
from torch.utils.data import DataLoader

from pipeline.detection.dataset import Batch, DetectionDataset, EpochSampler, Example, make_loader
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

    ``on_batch`` is called after each batch; what it raises ends the work.
    """
    was_training = model.training
    model.eval()
    loader = make_loader(data, EpochSampler(len(data), 0, shuffle=False), batch_size, workers=0)
    results: list[Detections] = []
    for batch in _batches(loader):
        images = batch.images.to(fabric.device)
        with fabric.autocast():
            found = find(model, images, rules)
        results += [{name: value.cpu() for name, value in one.items()} for one in found]
        if on_batch:
            on_batch()
    model.train(was_training)
    return results


def _batches(loader: DataLoader[Example]) -> Iterator[Batch]:
    yield from loader
