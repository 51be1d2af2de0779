"""Pictures of a sweep: which params matter, and which values did well."""

import warnings
from typing import Any

import optuna
from optuna.trial import TrialState

from pipeline.evaluation.figures import png

_ENOUGH = 4  # completed trials, for importances that mean anything


def plot_sweep(study: optuna.Study) -> dict[str, bytes]:
    """``importance`` and ``parallel_coordinates`` as PNG; none where too few trials were completed."""
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
