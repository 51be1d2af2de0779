"""The batches of a training run, from any step on."""

import logging
import math
from collections.abc import Iterator
from itertools import islice
from typing import cast

from torch.utils.data import DataLoader

from pipeline.detection.dataset import Batch, DetectionDataset, EpochBatches, Example, make_loader
from pipeline.errors import UserError
from pipeline.escaping import shortened
from pipeline.training.settings import TrainSettings

logger = logging.getLogger(__name__)


class ResumableBatches:
    """Groups of ``accumulate`` batches, one group for each step of the optimizer.

    In a run of several processes, each gets its own part of every batch. All steps have the same number of images.
    """

    def __init__(self, data: DetectionDataset, settings: TrainSettings, seed: int, rank: int, world_size: int) -> None:
        self.data, self._settings = data, settings
        images = settings.batch_size * world_size * settings.accumulate  # of one step
        self._order = EpochBatches(len(data), settings.batch_size, seed, True, rank, world_size, images)
        self._loader = self._make_loader()
        self.steps_per_epoch = math.ceil(len(data) / images)

    def groups(self, epoch: int, position: int) -> Iterator[list[Batch]]:
        """Yield the groups of ``epoch`` that are left after ``position`` steps.

        Raises:
            UserError: a worker of the loader dies twice.
        """
        batches = self._batches(epoch, position * self._settings.accumulate)
        while group := list(islice(batches, self._settings.accumulate)):
            yield group

    def _batches(self, epoch: int, first: int) -> Iterator[Batch]:
        """Yield batches from ``first`` on; a loader whose worker dies is started again, once."""
        failed = False
        while True:
            self._order.start_at(epoch, first)
            try:
                for batch in self._loader:
                    first += 1
                    yield cast(Batch, batch)
                return
            except RuntimeError as error:
                if "DataLoader worker" not in str(error):
                    raise
                reason = shortened(str(error), 120)
                if failed:
                    raise UserError(
                        f"train.workers = {self._settings.workers}: a data loader's worker died twice: {reason}"
                    ) from None
                failed = True
                logger.warning("a data loader's worker died (%s); starting it again", reason)
                self._loader = self._make_loader()

    def _make_loader(self) -> DataLoader[Example]:
        # Code that is compiled for one shape takes all batches if their boxes are padded alike.
        rows = self.data.most_boxes() if self._settings.compile else 1
        return make_loader(self.data, self._order, self._settings.workers, rows)
