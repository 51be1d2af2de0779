"""Peak memory of a training step at 1024 px, each side in its own process."""

import multiprocessing
import resource
from collections.abc import Callable
from multiprocessing.connection import Connection

import torch

from benchmarks.detectors import make_batch, our_detector, our_step, torchvision_detector, torchvision_step

SIZE, BOXES = 1024, (0, 2)


def main() -> None:
    ours = _peak(_our_steps)
    for name, tuned in (("as it comes (float32)", False), ("in bf16 and channels_last", True)):
        theirs = _peak(_torchvision_steps, tuned)
        what = f"peak memory of a training step, ResNet-50, {SIZE} px, batch {len(BOXES)}, torchvision {name}"
        print(f"{what}: {theirs / ours:.2f} x  (ours {ours:.2f} GiB, peer {theirs:.2f} GiB)", flush=True)


def _our_steps() -> None:
    step = our_step(our_detector(), make_batch(SIZE, BOXES))
    step()
    step()


def _torchvision_steps(tuned: bool) -> None:
    step = torchvision_step(torchvision_detector(SIZE), make_batch(SIZE, BOXES), tuned)
    step()
    step()


def _peak(steps: Callable[..., None], *arguments: bool) -> float:
    """Return the largest resident size in GiB of a fresh process that runs ``steps``."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_measure, args=(there, steps, arguments))
    process.start()
    peak: float = here.recv()
    process.join()
    return peak


def _measure(result: Connection, steps: Callable[..., None], arguments: tuple[bool, ...]) -> None:
    torch.manual_seed(0)
    steps(*arguments)
    result.send(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)


if __name__ == "__main__":
    main()
