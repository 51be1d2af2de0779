"""Signs of work that takes seconds or more: on a terminal only, since in a log they would be escape codes."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TypeVar

from rich.console import Console
from rich.progress import Progress, track

Item = TypeVar("Item")


def with_progress(items: Iterable[Item], description: str, total: int | None = None) -> Iterable[Item]:
    """Yield the items, and show on stderr how many of them, of ``total``, have been taken."""
    console = Console(stderr=True)
    return track(items, description, total, console=console, disable=not console.is_terminal)


@contextmanager
def progress_of(description: str, total: int) -> Iterator[Callable[[], None]]:
    """Show progress on stderr; the block calls what it gets once for each of ``total`` steps."""
    console = Console(stderr=True)
    with Progress(console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(description, total=total)
        yield lambda: bar.advance(task)


def at_work(description: str) -> AbstractContextManager[object]:
    """Show on stderr that the block is at work, where the number of steps is not known."""
    console = Console(stderr=True)
    return console.status(f"{description} ...") if console.is_terminal else nullcontext()
