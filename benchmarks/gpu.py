"""Training and inference on a GPU beside torchvision's RetinaNet, stock and tuned; prints a table in Markdown.

Usage: python -m benchmarks.gpu [--out FILE]

Tuned is bf16, ``channels_last``, and a compiled backbone and head. Without CUDA everything runs at a toy size, so that
a test can run it; the figures then mean nothing, and the table says so.
"""

import argparse
import contextlib
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.detectors import (
    POST_PROCESSING,
    Batch,
    make_batch,
    our_detector,
    our_step,
    torchvision_detector,
    torchvision_step,
)
from pipeline.assembly.inputs import read_inputs
from pipeline.assembly.training import make_trainer
from pipeline.detection.detect import detect
from pipeline.errors import run_main
from pipeline.params import Params
from pipeline.sources.sample import make_sample
from pipeline.stages.preprocess import preprocess
from pipeline.stages.split import split
from pipeline.training.trainer import Hooks

OURS, STOCK, TUNED = "ours", "torchvision", "torchvision, tuned"
Work = Callable[[], object]


@dataclass(frozen=True)
class Scale:
    """Sizes of the measurements.

    Attributes:
        size: side of the images in pixels.
        batch_size: images of a step.
        calls: calls of a measurement.
        rounds: measurements of each side; they take turns.
        studies: studies of the data set of the whole training.
        matrix: side of the matrices whose product measures the device's peak.
    """

    size: int
    batch_size: int
    calls: int
    rounds: int
    studies: int
    matrix: int


GPU = Scale(size=1024, batch_size=16, calls=10, rounds=5, studies=400, matrix=8192)
TOY = Scale(size=128, batch_size=2, calls=1, rounds=1, studies=20, matrix=256)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--out", type=Path, help="file for the table")
    out = parser.parse_args().out
    table = measure(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    print(table)
    if out:
        out.write_text(table + "\n")


def measure(device: torch.device) -> str:
    """Return the table of a device."""
    torch.manual_seed(0)
    on_gpu = device.type == "cuda"
    scale = GPU if on_gpu else TOY
    named = torch.cuda.get_device_name() if on_gpu else "a CPU at a toy size; these figures mean nothing"
    batch = make_batch(scale.size, [number % 3 for number in range(scale.batch_size)]).to(device)
    rows = [
        _compared("training step, images a second", _steps(batch, on_gpu), scale),
        _compared("inference, images a second", _detections(batch, on_gpu), scale),
    ]
    rate, waiting = _whole_training(scale, on_gpu)
    rows.append(f"| whole training, images a second; share of waiting for images | {rate:.1f}; {waiting:.1%} | | | | |")
    share = _share_of_the_peak(batch, scale)
    rows.append(f"| convolutions of a training step, share of the bf16 peak | {share:.0%} | | | | |")
    head = f"| on {named} | {OURS} | {STOCK} | {TUNED} | ours / {STOCK} | ours / {TUNED} |"
    return "\n".join([head, "| --- " * 6 + "|", *rows])


def _compared(name: str, sides: Mapping[str, Work], scale: Scale) -> str:
    rates: dict[str, list[float]] = {side: [] for side in sides}
    for work in sides.values():
        work()  # compiles
    for _ in range(scale.rounds):
        for side, work in sides.items():
            rates[side].append(scale.batch_size / _seconds(work, scale.calls))
    medians = {side: statistics.median(values) for side, values in rates.items()}
    cells = [f"{medians[side]:.1f}" for side in (OURS, STOCK, TUNED)]
    ratios = [f"{medians[OURS] / medians[side]:.2f}" for side in (STOCK, TUNED)]
    return f"| {name} | {' | '.join([*cells, *ratios])} |"


def _seconds(work: Work, calls: int) -> float:
    """Return the seconds of one call."""
    _wait()
    started = time.perf_counter()
    for _ in range(calls):
        work()
    _wait()
    return (time.perf_counter() - started) / calls


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _steps(batch: Batch, on_gpu: bool) -> dict[str, Work]:
    device = batch.images.device
    ours = our_detector().to(device)
    _compile(ours, on_gpu)
    stock, tuned = (torchvision_detector(batch.images.shape[-1]).to(device) for _ in range(2))
    _compile(tuned.backbone, on_gpu)
    _compile(tuned.head, on_gpu)
    return {
        OURS: our_step(ours, batch, whole=True),
        STOCK: torchvision_step(stock, batch, tuned=False),
        TUNED: torchvision_step(tuned, batch, tuned=True),
    }


def _detections(batch: Batch, on_gpu: bool) -> dict[str, Work]:
    device = batch.images.device
    ours = our_detector().to(device).eval()
    stock, tuned = (torchvision_detector(batch.images.shape[-1]).to(device).eval() for _ in range(2))
    tuned = tuned.to(memory_format=torch.channels_last)
    for module in (ours, tuned.backbone, tuned.head):
        _compile(module, on_gpu)

    def in_bf16(work: Work) -> Work:
        @torch.no_grad()
        def run() -> None:
            with torch.autocast(device.type, torch.bfloat16):
                work()

        return run

    return {
        OURS: in_bf16(lambda: detect(ours, batch.images, POST_PROCESSING)),
        STOCK: torch.no_grad()(lambda: stock(batch.torchvision_images)),
        TUNED: in_bf16(lambda: tuned(batch.torchvision_images)),
    }


def _compile(module: torch.nn.Module, on_gpu: bool) -> None:
    # At the toy size the graphs are made and then run without a compiler, which would take a minute each.
    module.compile(backend="inductor" if on_gpu else "eager")


def _whole_training(scale: Scale, on_gpu: bool) -> tuple[float, float]:
    """Train two epochs on prepared images; return the second's images a second and its share of waiting for images."""
    values: dict[str, Any] = yaml.safe_load(Path("params.yaml").read_text())
    values["preprocess"] |= {"image_size": scale.size}
    values["model"] |= {"weights": "none", "frozen_stages": 0, "dropout": 0.0}
    if on_gpu:
        values["model"] |= {"backbone": "resnet50", "norm": "frozen_batch", "fpn_channels": 256, "head_convs": 4}
    values["train"] |= {"epochs": 2, "batch_size": scale.batch_size, "compile": on_gpu, "log_every_steps": 1000}
    values["train"] |= {"workers": 8 if on_gpu else 0}
    epochs = []
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        make_sample(
            Path("data/rsna"), studies=scale.studies, size=scale.size, seed=1, opacity_fraction=0.5, labels=None,
            workers=0,
        )  # fmt: skip
        params = Params.model_validate(values)
        preprocess(params)
        split(params)
        trainer = make_trainer(params, read_inputs(params), Path("checkpoints"))
        trainer.fit(Hooks(lambda metrics, _: epochs.append(metrics), lambda *_: 0.0))
    last = epochs[-1]
    return last["train/images_per_second"], last["train/data_wait_share"]


def _share_of_the_peak(batch: Batch, scale: Scale) -> float:
    """Return the operations a second of a step's convolutions, as a share of those of the best matrix product."""
    step = our_step(our_detector().to(batch.images.device), batch, whole=True)
    step()
    with FlopCounterMode(display=False) as counter:
        step()
    counted = counter.get_flop_counts()["Global"]
    operations = sum(number for name, number in counted.items() if "convolution" in str(name))
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if batch.images.is_cuda else [])]
    with profile(activities=activities) as profiled:
        step()
        _wait()
    microseconds = sum(
        one.self_device_time_total if batch.images.is_cuda else one.self_cpu_time_total
        for one in profiled.key_averages()
        if "convolution" in one.key
    )
    return float(operations / (microseconds / 1e6) / _peak(batch.images.device, scale))


def _peak(device: torch.device, scale: Scale) -> float:
    """Return the most operations a second that a product of two bf16 matrices reaches here."""
    matrix = torch.randn(scale.matrix, scale.matrix, device=device).bfloat16()
    matrix @ matrix
    return 2 * scale.matrix**3 / min(_seconds(lambda: matrix @ matrix, 5) for _ in range(5))


if __name__ == "__main__":
    run_main(main)
