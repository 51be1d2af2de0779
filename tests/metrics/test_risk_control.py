"""Promised sensitivities hold on new patients, over many draws of val; the plain quantile of val does not keep them."""

import numpy as np
import pytest
from scipy.stats import binom  # type: ignore[attr-defined]

from pipeline.errors import UserError
from pipeline.metrics.results import image_result
from pipeline.metrics.risk_control import missed_patients, sensitive_threshold

RISK = 0.1
DRAWS = 1000


def images_of(scores, positive=True):
    truth = [[0, 0, 5, 5]] if positive else []
    return [image_result([[0, 0, 5, 5]], [score], truth) for score in scores]


def redrawn(threshold_of, patients, draws=DRAWS):
    """Return the true miss rate after each draw of val; scores are uniform, so it equals the threshold."""
    rng = np.random.default_rng(0)
    return np.array([threshold_of(rng.random(patients)) for _ in range(draws)])


def promised(confidence):
    def threshold(scores):
        groups = [str(number) for number in range(len(scores))]
        return sensitive_threshold(images_of(scores), groups, 1 - RISK, confidence)

    return threshold


@pytest.mark.parametrize("patients", [12, 40, 100])
def test_on_average_no_more_are_missed_than_promised(patients):
    rates = redrawn(promised(None), patients)
    error = rates.std() / np.sqrt(DRAWS)
    assert rates.mean() <= RISK + 3 * error
    # And not many fewer: the highest threshold that keeps the promise is taken.
    assert rates.mean() >= RISK - 1 / (patients + 1) - 3 * error
    # The quantile of val misses more than it promises.
    naive = redrawn(lambda scores: np.sort(scores)[int(RISK * len(scores))], patients)
    assert naive.mean() > RISK


@pytest.mark.parametrize("confidence", [0.8, 0.95])
def test_the_promise_is_broken_no_more_often_than_its_confidence_allows(confidence):
    broken = (redrawn(promised(confidence), 60) > RISK).mean()
    allowed = binom.ppf(0.999, DRAWS, 1 - confidence) / DRAWS
    assert broken <= allowed
    # The promise on average is broken far more often.
    assert (redrawn(promised(None), 60) > RISK).mean() > allowed


def test_a_patient_is_as_safe_as_the_weakest_study():
    """Ten patients with two positive studies each; the second study of one of them has a low score."""
    groups = [str(number // 2) for number in range(20)] + ["no opacity"]
    images = images_of([0.1, *[0.9] * 19]) + images_of([0.95], positive=False)
    threshold = sensitive_threshold(images, groups, 0.9, None)
    assert threshold < 0.1
    assert missed_patients(images, groups, threshold) == (0, 10)
    assert missed_patients(images, groups, 0.5) == (1, 10)


def test_promises_that_val_cannot_keep():
    groups = [str(number) for number in range(30)]
    with pytest.raises(UserError, match="val has 8 patients with an opacity; the promise needs 9"):
        sensitive_threshold(images_of([0.5] * 8), groups[:8], 0.9, None)
    with pytest.raises(UserError, match="val has 28 patients with an opacity; the promise needs 29"):
        sensitive_threshold(images_of([0.5] * 28), groups[:28], 0.9, 0.95)
    nothing = [image_result([], [], [[0, 0, 5, 5]])] * 4
    with pytest.raises(UserError, match="of val's 30 patients with an opacity, 4 have a study without any detection"):
        sensitive_threshold(images_of([0.5] * 26) + nothing, groups, 0.9, None)
