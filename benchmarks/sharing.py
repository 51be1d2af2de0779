"""Training on a CPU that is not idle: steps beside 0, 1, 2 and 4 busy processes, with OpenMP's setting and with ours.

By default, OpenMP's threads spin while they wait for each other; `pipeline` makes them sleep.
"""

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

WAITING = "OMP_WAIT_POLICY"  # read when torch is imported, so each measurement is a process of its own
BUSY, ROUNDS, SECONDS = (0, 1, 2, 4), 3, 8.0


def main() -> None:
    """Measure in turn; print medians, and the shares of the quiet speed."""
    speeds: dict[tuple[str, int], list[float]] = {}
    for _ in range(ROUNDS):
        for count in BUSY:
            for policy in ("default", "PASSIVE"):
                with busy_processes(count):
                    speeds.setdefault((policy, count), []).append(_measured(policy))
    for policy in ("default", "PASSIVE"):
        medians = [statistics.median(speeds[policy, count]) for count in BUSY]
        shares = ", ".join(
            f"{count}: {one:.2f} ({one / medians[0]:.2f})" for count, one in zip(BUSY, medians, strict=True)
        )
        print(f"images a second (share of quiet) beside busy processes, threads wait by {policy}: {shares}")


@contextmanager
def busy_processes(count: int) -> Iterator[None]:
    """Run ``count`` processes meanwhile, each of which uses all of a core that it can get."""
    started = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in started:
            process.kill()
            process.wait()


def _measured(policy: str) -> float:
    # `pipeline` keeps the value that it finds; empty, it means OpenMP's default.
    environment = {**os.environ, WAITING: "" if policy == "default" else policy}
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.sharing", "step"],
        env=environment,
        check=True,
        capture_output=True,
        text=True,
    )
    return float(done.stdout)


def measure() -> None:
    """Print the images a second of training steps of the shipped network's size."""
    import torch

    from benchmarks.detectors import ARCHITECTURE, Batch, our_step
    from pipeline.detection.retinanet import RetinaNet
    from pipeline.training.malloc import keep_freed_memory

    keep_freed_memory()
    torch.manual_seed(0)
    network = replace(ARCHITECTURE, backbone="tf_efficientnet_lite0", fpn_channels=64, head_convs=2)
    model = RetinaNet(network).to(memory_format=torch.channels_last)
    images = torch.randint(0, 256, (8, 1, 256, 256), dtype=torch.uint8)
    boxes = torch.tensor([[[30.0, 30, 90, 120]]]).repeat(8, 1, 1)
    step = our_step(model, Batch(images, boxes, torch.tensor([[0], [-1]]).repeat(4, 1), [], []))
    step()
    steps, started = 0, time.perf_counter()
    while (passed := time.perf_counter() - started) < SECONDS:
        step()
        steps += 1
    print(len(images) * steps / passed)


if __name__ == "__main__":
    measure() if sys.argv[1:] == ["step"] else main()
