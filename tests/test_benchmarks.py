"""Benchmarks run, at a toy size: those of machines that this project rarely sees, and those that make networks."""

import re
import subprocess
import sys

import pytest

from benchmarks.contestants import Contest, ours
from pipeline.assembly.inputs import read_inputs
from pipeline.params import Params
from pipeline.stages.preprocess import preprocess
from pipeline.stages.split import split
from tests.conftest import REPOSITORY


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "lines"), [("inference", 4), ("train_step", 4), pytest.param("runtimes", 9, marks=pytest.mark.long)]
)
def test_a_benchmark_runs(name, lines):
    code = f"from benchmarks import {name}\n{name}.SIZE = 128\n{name}.main()"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    assert len(re.findall(r": \d+\.\d+ x  \(ours ", done.stdout)) == lines, done.stdout


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


@pytest.mark.slow
def test_a_contestant_trains_the_epochs_of_the_params_where_they_fit_into_the_seconds(small_params, rsna, tmp_path):
    small_params["train"]["epochs"] = 2
    params = Params.model_validate(small_params)
    preprocess(params)
    split(params)
    outcome = ours(Contest(params, read_inputs(params), 10_000, tmp_path / "ours"))
    assert outcome.note.startswith("epochs 2, ")
    assert set(outcome.results) == {"val", "test"}
