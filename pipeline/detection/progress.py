"""What a user sees of an epoch while it runs."""

import logging

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

logger = logging.getLogger(__name__)


class EpochProgress:
    """A bar on a terminal, one line per epoch in a log."""

    def __init__(self, description: str, total: int) -> None:
        self._console = Console(stderr=True)
        self._description, self._text = description, ""
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[text]}"),
        )
        self._bar = Progress(
            *columns, TimeRemainingColumn(), console=self._console, disable=not self._console.is_terminal
        )
        self._task = self._bar.add_task(description, total=total, text="")

    def __enter__(self) -> "EpochProgress":
        self._bar.start()
        return self

    def advance(self, text: str | None = None) -> None:
        """One more step; ``text`` replaces what stands behind the bar."""
        self._text = text or self._text
        self._bar.update(self._task, advance=1, text=self._text)

    def __exit__(self, *_: object) -> None:
        self._bar.stop()
        if not self._console.is_terminal:
            logger.info("%s  %s", self._description, self._text)
