import optuna
import pytest

from pipeline.reports.sweep_plot import plot_sweep


@pytest.fixture
def study():
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    made = optuna.create_study(direction="maximize")
    made.optimize(lambda trial: -((trial.suggest_float("train.lr", 1e-4, 1e-2, log=True) - 1e-3) ** 2)
                  + trial.suggest_categorical("loss.gamma", [1.0, 2.0]), n_trials=3)  # fmt: skip
    return made


@pytest.mark.filterwarnings("ignore")  # warnings of Optuna
def test_both_pictures_once_there_are_enough_trials(study):
    assert plot_sweep(study) == {}
    study.optimize(
        lambda trial: (
            trial.suggest_float("train.lr", 1e-4, 1e-2, log=True) + trial.suggest_categorical("loss.gamma", [1.0, 2.0])
        ),
        n_trials=3,
    )
    pictures = plot_sweep(study)
    assert set(pictures) == {"importance", "parallel_coordinates"}
    assert all(picture.startswith(b"\x89PNG") for picture in pictures.values())
    # The pictures are drawn even if all completed trials have the same value.
    flat = optuna.create_study(direction="maximize")
    flat.optimize(lambda trial: 0.0 * trial.suggest_float("train.lr", 1e-4, 1e-2, log=True), n_trials=5)
    assert set(plot_sweep(flat)) == {"importance", "parallel_coordinates"}
