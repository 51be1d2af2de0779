"""Training images are augmented once: by the loader or on the training device."""

import numpy as np
import pytest

from pipeline.assembly.inputs import read_inputs
from pipeline.assembly.training import make_trainer
from pipeline.params import Params
from pipeline.stages.preprocess import preprocess
from pipeline.stages.split import split


@pytest.mark.parametrize("on_device", [False, True])
def test_images_are_changed_once(small_params, rsna, tmp_path, on_device, monkeypatch):
    small_params["augment"] |= {"horizontal_flip": 1, "affine": 0, "brightness_contrast": 0, "gamma": 0, "noise": 0}
    small_params["augment"]["on_device"] = on_device
    params = Params.model_validate(small_params)
    preprocess(params)
    split(params)
    parts = read_inputs(params)
    trainer = make_trainer(params, parts, tmp_path / "checkpoints")
    loaded = next(trainer.batches.groups(0, 0))
    stored = np.stack([parts["train"].images[index] for index in loaded[0].indices])
    np.testing.assert_array_equal(loaded[0].images[:, 0], stored if on_device else stored[..., ::-1])
    taken = []

    def step(batches, _):
        taken.extend(batches)
        return {}

    monkeypatch.setattr(trainer.train_step, "step", step)
    with pytest.raises(KeyError):  # the step that was taken over returns no loss
        trainer._take_step(loaded)
    np.testing.assert_array_equal(taken[0].images[:, 0], stored[..., ::-1])
