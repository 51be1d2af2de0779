"""Plots of a sweep: the importance of each param, and the values that did well."""

import warnings
from typing import Any

import optuna
from optuna.trial import TrialState

from pipeline.reports.figures import png

_ENOUGH = 4  # completed trials; with fewer, importances mean nothing


def plot_sweep(study: optuna.Study) -> dict[str, bytes]:
    """Plot ``importance`` and ``parallel_coordinates`` as PNG; none if too few trials are complete."""
    if len(study.get_trials(states=(TrialState.COMPLETE,))) < _ENOUGH:
        return {}
    from optuna.visualization import matplotlib as plots

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return {
            "importance": _png(plots.plot_param_importances(study)),
            "parallel_coordinates": _png(plots.plot_parallel_coordinate(study)),
        }


def _png(axes: Any) -> bytes:
    figure = axes.figure
    figure.set_size_inches(9, 5)
    return png(figure, tight=True)
