"""Benchmarks run, at a toy size: those of machines that this project rarely sees, and those that make networks."""

import re
import subprocess
import sys

import pytest

from tests.conftest import REPOSITORY


@pytest.mark.slow
@pytest.mark.parametrize("name", ["inference", "train_step"])
def test_a_benchmark_runs(name):
    code = f"from benchmarks import {name}\n{name}.SIZE = 128\n{name}.main()"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    assert len(re.findall(r": \d+\.\d+ x  \(ours ", done.stdout)) == 4, done.stdout


@pytest.mark.slow
def test_the_benchmark_of_a_gpu_runs_without_one(tmp_path):
    command = [sys.executable, "-m", "benchmarks.gpu", "--out", tmp_path / "table.md"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    head, _, *rows = (tmp_path / "table.md").read_text().splitlines()
    assert "figures mean nothing" in head or "NVIDIA" in head
    assert [row.split(" | ")[0].removeprefix("| ") for row in rows] == [
        "training step, images a second",
        "inference, images a second",
        "whole training, images a second; share of waiting for images",
        "convolutions of a training step, share of the bf16 peak",
    ]
    for row in rows:
        assert float(re.findall(r"\d+\.?\d*", row.split(" | ")[1])[0]) > 0
