"""Costs of a run besides its model, on the sample at 512 px: start, data, log, checkpoints.

The benchmark has the requirements of `make demo`; it works in a copy of this repository's last commit.
"""

import contextlib
import json
import os
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

from benchmarks.pairs import _seconds
from pipeline.assembly.inputs import read_inputs
from pipeline.assembly.training import make_trainer
from pipeline.detection.malloc import keep_freed_memory
from pipeline.params import load_params
from pipeline.tracking import tracked_run
from pipeline.training.trainer import Hooks, Trainer

SIZE, EPOCHS, STARTS, CHECKPOINTS = 512, 3, 3, 7


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        project = Path(folder) / "project"
        subprocess.run(["git", "-c", "advice.detachedHead=false", "clone", "-q", ".", project], check=True)
        with contextlib.chdir(project):
            os.environ.pop("MLFLOW_TRACKING_URI", None)
            _set(preprocess={"image_size": SIZE}, model={"weights": "none"})
            _dvc("pull", "data/rsna.dvc")
            _dvc("repro", "split")
            start_up()
            keep_freed_memory()
            outside_the_model()


def start_up() -> None:
    """Measure the time from the command to the end of the first step."""
    _set(train={"log_every_steps": 1, "epochs": 1})
    found = []
    for number in range(STARTS):
        _set(train={"lr": 0.001 + number / 1e6})
        began = time.time()
        with Path("start.log").open("w") as log:
            process = subprocess.Popen(["dvc", "repro", "train"], stdout=log, stderr=subprocess.STDOUT)
        run = _first_step(process)
        process.send_signal(2)
        process.wait()
        found.append(run - began)
    print(f"from `dvc repro` to the end of the first step: {statistics.median(found):.1f} s ({STARTS} starts)")


def _first_step(process: subprocess.Popen[bytes]) -> float:
    """Return the time at which the first step's metrics were logged."""
    spool = Path(".pneumoflow/spool")
    while process.poll() is None:
        for path in spool.rglob("*.jsonl"):
            for line in path.read_text().splitlines():
                with contextlib.suppress(ValueError):
                    entry = json.loads(line)
                    if entry.get("key") == "train/loss":
                        return float(entry["timestamp"]) / 1000
        time.sleep(0.02)
    raise RuntimeError(f"the run ended before its first step: {Path('start.log').read_text()}")


def outside_the_model() -> None:
    """Measure the time that steps, log and checkpoints take in a real run."""
    _set(train={"log_every_steps": 5, "epochs": EPOCHS, "checkpoint_steps": 0})
    params = load_params()
    splits = read_inputs(params)
    trainer = make_trainer(params, splits, Path("checkpoints/bench"))
    with tracked_run(None, {}) as run, run.system_metrics():
        clock = Clock(trainer)
        silent = Hooks(lambda *_: None, lambda *_: 0.0)
        logging = Hooks(clock.timed(run.log_metrics, "log"), lambda *_: 0.0)
        trainer._train_epoch(silent)  # to warm up
        for _ in range(EPOCHS):
            clock.measure(logging)
        clock.report()
        hooks = Hooks(lambda *_: None, lambda *_: 0.0, before_checkpoint=run.flush)
        times = [_seconds(lambda: trainer.checkpoint(hooks)) for _ in range(CHECKPOINTS)]
    size = sum(path.stat().st_size for path in max(Path("checkpoints/bench").glob("step-*")).iterdir()) / 2**20
    print(f"a checkpoint of {size:.0f} MiB: {1000 * statistics.median(times):.0f} ms (median of {CHECKPOINTS})")


class Clock:
    """A clock that adds up the time of parts of an epoch."""

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        self.spent: dict[str, float] = {}
        self.shares: dict[str, list[float]] = {}
        trainer.train_step.step = self.timed(trainer.train_step.step, "model")  # type: ignore[method-assign]
        trainer.guard.look = self.timed(trainer.guard.look, "model")  # type: ignore[method-assign]

    def timed(self, function: Any, name: str) -> Any:
        def call(*arguments: Any, **named: Any) -> Any:
            started = time.perf_counter()
            try:
                return function(*arguments, **named)
            finally:
                self.spent[name] = self.spent.get(name, 0.0) + time.perf_counter() - started

        return call

    def measure(self, hooks: Hooks) -> None:
        self.spent.clear()
        self._trainer.position = 0
        total = _seconds(lambda: self._trainer._train_epoch(hooks))
        for name, seconds in self.spent.items():
            self.shares.setdefault(name, []).append(seconds / total)

    def report(self) -> None:
        model, log = (statistics.median(self.shares[name]) for name in ("model", "log"))
        print(f"share of an epoch's steps outside the model: {1 - model:.1%}; in the log: {log:.2%} ({EPOCHS} epochs)")


def _set(**sections: dict[str, object]) -> None:
    path = Path("params.yaml")
    values = yaml.safe_load(path.read_text())
    for name, section in sections.items():
        values[name] |= section
    path.write_text(yaml.safe_dump(values))


def _dvc(*arguments: str) -> None:
    subprocess.run(["dvc", *arguments], check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
