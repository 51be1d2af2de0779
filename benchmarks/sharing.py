"""A CPU that is not idle: training and detection beside busy processes, in parts and in PyTorch's own way.

PyTorch lets all cores work on one operation after another, and OpenMP's threads spin for milliseconds while they wait
for each other. `pipeline` gives each core a part of the batch, and its threads sleep soon.
"""

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import product
from typing import NamedTuple

# Read when torch is imported, so each measurement is a process of its own.
WAITING, DEFAULT_OF_OPENMP = "GOMP_SPINCOUNT", "300000"
WHOLE, PARTS = "whole", "parts"
# It ends with the process that started it, also if that one is killed.
_BUSY_LOOP = """
import os
parent = os.getppid()
while os.getppid() == parent:
    for _ in range(1_000_000):
        pass
"""
BUSY, ROUNDS, SECONDS = (0, 1, 2, 4), 3, 4.0


class Work(NamedTuple):
    """Steps or detections, of batches ``[batch_size, 1, size, size]``."""

    training: bool
    batch_size: int
    size: int = 256
    backbone: str = "tf_efficientnet_lite0"


# Stage `train`; `evaluate`, which takes as large batches; `predict`; the served model, small and large.
WORK = {
    "train, batch 8": Work(training=True, batch_size=8),
    "detect, batch 8": Work(training=False, batch_size=8),
    "batch 4": Work(training=False, batch_size=4),
    "batch 1": Work(training=False, batch_size=1),
    "batch 1, ResNet-50, 512 px": Work(training=False, batch_size=1, size=512, backbone="resnet50"),
}


def main() -> None:
    """Measure in turn; print medians, and the shares of the quiet speed."""
    for work in WORK:
        speeds: dict[tuple[str, int], list[float]] = {}
        for _, count, way in product(range(ROUNDS), BUSY, (WHOLE, PARTS)):
            with busy_processes(count):
                speeds.setdefault((way, count), []).append(_measured(work, way))
        for way in (WHOLE, PARTS):
            medians = [statistics.median(speeds[way, count]) for count in BUSY]
            shares = ", ".join(
                f"{count}: {one:.2f} ({one / medians[0]:.2f})" for count, one in zip(BUSY, medians, strict=True)
            )
            print(f"{work}, {way}: images a second (share of quiet) beside busy processes {shares}", flush=True)


@contextmanager
def busy_processes(count: int) -> Iterator[None]:
    """Run ``count`` processes meanwhile, each of which uses all of a core that it can get."""
    started = [subprocess.Popen([sys.executable, "-c", _BUSY_LOOP]) for _ in range(count)]
    try:
        yield
    finally:
        for process in started:
            process.kill()
            process.wait()


def _measured(work: str, way: str) -> float:
    environment = {name: value for name, value in os.environ.items() if name != WAITING}
    if way == WHOLE:
        environment[WAITING] = DEFAULT_OF_OPENMP
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.sharing", work, way],
        env=environment,
        check=True,
        capture_output=True,
        text=True,
    )
    return float(done.stdout)


def measure(task: Work, whole: bool) -> None:
    """Print the images a second, with the shipped network's pyramid and heads."""
    import torch

    from benchmarks.detectors import ARCHITECTURE, POST_PROCESSING, Batch, our_step
    from pipeline.detection.detect import detect, find
    from pipeline.detection.device import place
    from pipeline.detection.retinanet import RetinaNet

    torch.manual_seed(0)
    network = replace(ARCHITECTURE, backbone=task.backbone, fpn_channels=64, head_convs=2)
    model = place(RetinaNet(network), torch.device("cpu"))
    images = torch.randint(0, 256, (task.batch_size, 1, task.size, task.size), dtype=torch.uint8)
    work: Callable[[], object]
    if task.training:
        boxes = torch.tensor([[[30.0, 30, 90, 120]]]).repeat(task.batch_size, 1, 1)
        labels = torch.tensor([[0], [-1]]).repeat(task.batch_size // 2, 1)
        work = our_step(model, Batch(images, boxes, labels, [], []), whole)
    else:
        model.eval()
        rules = replace(POST_PROCESSING, suppression="soft_nms", detections_per_img=20)

        @torch.no_grad()
        def work() -> None:
            (find if whole else detect)(model, images, rules)

    work()
    times, started = 0, time.perf_counter()
    while (passed := time.perf_counter() - started) < SECONDS:
        work()
        times += 1
    print(task.batch_size * times / passed)


if __name__ == "__main__":
    measure(WORK[sys.argv[1]], sys.argv[2] == WHOLE) if sys.argv[1:] else main()
