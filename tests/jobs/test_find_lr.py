import numpy as np
import pandas as pd
import pytest

from pipeline.errors import UserError
from pipeline.jobs.find_lr import find_lr, smoothed, steepest
from pipeline.params import Params
from pipeline.stages.preprocess import preprocess
from pipeline.stages.split import split


def test_the_steepest_place_of_a_known_curve():
    rates = np.geomspace(1e-5, 1, 200).tolist()
    # The loss falls around 1e-3, then rises.
    curve = [1 / (1 + (rate / 1e-3) ** 2) + rate for rate in rates]
    fastest, lowest = steepest(rates, curve)
    assert fastest == pytest.approx(1e-3, rel=0.1)
    assert lowest == rates[int(np.argmin(curve))]
    with pytest.raises(UserError, match="fell at none of 200 rates"):
        steepest(rates, list(range(200)))


def test_smoothing_passes_over_single_batches():
    assert smoothed([2.0] * 15) == pytest.approx([2.0] * 15)
    assert smoothed([2.0] * 7 + [80.0] + [2.0] * 7) == pytest.approx([2.0] * 15)


@pytest.mark.long
@pytest.mark.slow
def test_on_prepared_data(small_params, rsna, tmp_path, run, write_params):
    write_params(small_params)
    params = Params.model_validate(small_params)
    preprocess(params)
    split(params)
    fastest, lowest = find_lr(params, tmp_path / "out", 40, 1e-5, 100.0)
    table = pd.read_csv(tmp_path / "out/learning_rate.csv")
    assert 1e-5 <= fastest < lowest < 10
    assert table["lr"].is_monotonic_increasing
    assert len(table) < 40  # the search ends where the loss explodes
    assert table["smoothed"].min() >= table["loss"].min()
    assert (tmp_path / "out/learning_rate.png").read_bytes().startswith(b"\x89PNG")
    assert not list(tmp_path.rglob("*.safetensors"))
    done = run("pipeline.cli", "find-lr", "--low", "2", "--high", "1", cwd=tmp_path)
    assert "--low 2 --high 1: low must be below high" in done.stderr
