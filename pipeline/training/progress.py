"""The progress display for the user while an epoch runs."""

import logging
import time
from collections.abc import Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

logger = logging.getLogger(__name__)

Item = TypeVar("Item")


_SECONDS_BETWEEN_LINES = 60.0


class EpochProgress:
    """A progress bar on a terminal; in a log, one line per epoch and one per minute."""

    def __init__(self, description: str, total: int, done: int = 0) -> None:
        self._console = Console(stderr=True)
        self._description, self._text, self._total, self._done = description, "", total, done
        self._started = self._said = time.monotonic()
        self._first = done
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[text]}"),
        )
        self._bar = Progress(
            *columns, TimeRemainingColumn(), console=self._console, disable=not self._console.is_terminal
        )
        self._task = self._bar.add_task(description, total=total, completed=done, text="")

    def __enter__(self) -> "EpochProgress":
        self._bar.start()
        return self

    def advance(self, text: str | None = None) -> None:
        """Count one more step; ``text`` replaces the text behind the bar."""
        self._text, self._done = text or self._text, self._done + 1
        self._bar.update(self._task, advance=1, text=self._text)
        now = time.monotonic()
        if not self._console.is_terminal and now - self._said > _SECONDS_BETWEEN_LINES and self._done < self._total:
            self._said = now
            left = (now - self._started) / (self._done - self._first) * (self._total - self._done)
            logger.info("%s  step %d/%d  %s  %.0f s left", self._description, self._done, self._total, self._text, left)

    def __exit__(self, *_: object) -> None:
        self._bar.stop()
        if not self._console.is_terminal:
            logger.info("%s  %s", self._description, self._text)


class Stopwatch:
    """A stopwatch for the images per second, and for the share of time spent waiting for them."""

    def __init__(self) -> None:
        self.images, self._waited, self._started = 0, 0.0, time.perf_counter()

    def waiting(self, batches: Iterator[Item]) -> Iterator[Item]:
        """Yield the batches, and add up the time that each took to come."""
        while True:
            asked = time.perf_counter()
            batch = next(batches, None)
            self._waited += time.perf_counter() - asked
            if batch is None:
                return
            yield batch

    def metrics(self) -> dict[str, float]:
        """Return the metrics since the epoch, or the rest of a resumed one, began."""
        passed = time.perf_counter() - self._started
        return {"train/images_per_second": self.images / passed, "train/data_wait_share": self._waited / passed}
