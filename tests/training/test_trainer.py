import logging
import math
import os
import signal
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins import MixedPrecision
from torch.amp import GradScaler

from pipeline.detection import device
from pipeline.detection.augment import Augmenter
from pipeline.detection.augment_on_device import DeviceAugmenter
from pipeline.detection.box_losses import every_box_loss
from pipeline.detection.dataset import DetectionDataset, collate
from pipeline.detection.device import make_fabric
from pipeline.detection.extra_losses import ExtraLosses
from pipeline.detection.inference import predict
from pipeline.detection.losses import DetectionLoss
from pipeline.detection.mask_losses import MaskSettings
from pipeline.detection.matching import _match_everything
from pipeline.detection.retinanet import HeadOutputs, RetinaNet
from pipeline.errors import Killed, UserError
from pipeline.training import passes
from pipeline.training.network_with_losses import TOTAL, NetworkWithLosses, StepLosses
from pipeline.training.optimizer import learning_rate
from pipeline.training.sharing import OtherProcesses
from pipeline.training.trainer import Hooks, Trainer, _seed_of
from tests.detection.settings import AUGMENT

SLIGHT = replace(
    AUGMENT, affine=0.5, scale=0.1, translate=0.05, rotate=2, brightness_contrast=0.5, brightness=0.1, contrast=0.1,
    gamma=0.2, noise=0.1,
)  # fmt: skip


@pytest.fixture
def build(architecture, loss_settings, post_processing, train_settings, dataset, squares, tmp_path):
    def make(
        folder="checkpoints", augment=None, data=None, precision="32-true", loss=None, extra=None, seed=3, dropout=0.0,
        on_device=None, **changes,
    ):  # fmt: skip
        torch.manual_seed(1)
        train_data = data or (DetectionDataset(*squares, Augmenter(augment), 0) if augment else dataset)
        model = RetinaNet(
            replace(architecture, mask_head=bool(extra and extra.mask.terms), image_classes=3 if extra else 0)
        )
        model.dropout = dropout
        return Trainer(
            fabric=make_fabric("cpu", precision),
            model=model,
            loss=DetectionLoss(loss or loss_settings),
            extra_losses=extra or ExtraLosses(MaskSettings({}, 0.5, 10.0, 5.0), 0.0),
            train_data=train_data,
            val_data=dataset,
            post_processing=post_processing,
            settings=replace(train_settings, **changes),
            seed=seed,
            checkpoints=tmp_path / folder,
            augment=on_device and DeviceAugmenter(on_device),
        )

    return make


def silent(score=lambda epoch: epoch, steps=None):
    return Hooks(
        on_step=lambda metrics, step: steps.append((step, metrics)) if steps is not None else None,
        on_epoch=lambda found, epoch: score(epoch),
    )


def test_learning_rate_warms_up_and_falls():
    rates = [learning_rate(step, 100, 10, 0.5) for step in range(100)]
    assert rates[0] == pytest.approx(0.05)
    assert rates[9] == rates[10] == 0.5
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[99] < 0.001
    assert learning_rate(0, 10, 0, 0.5) == 0.5


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["32-true", pytest.param("bf16-mixed", marks=pytest.mark.long)])
def test_learns_to_find_squares(build, squares, precision):
    """Test the whole chain: if matching, losses, decoding or averaging fails, it finds nothing."""
    trainer = build(epochs=24, precision=precision, lr=0.006)
    best = trainer.fit(silent())
    model = trainer.train_step.model
    model.load_state_dict(best.weights)
    found = predict(trainer.fabric, model, trainer.val_data, 4, trainer.post_processing)
    distances = [
        np.abs(one["boxes"][0].numpy() - box[0]).max() if len(one["boxes"]) else math.inf
        for one, box in zip(found, squares[1], strict=True)
        if len(box)
    ]
    assert np.median(distances) < 6
    assert (
        sum(bool((one["scores"] > 0.5).any()) for one, box in zip(found, squares[1], strict=True) if not len(box)) == 0
    )


@pytest.mark.parametrize(
    ("normalizer", "precision", "stop", "least"),
    [
        ("batch", "32-true", 3, 4),
        pytest.param("batch", "32-true", 4, 4, marks=pytest.mark.long),
        pytest.param("ema", "32-true", 3, 4, marks=pytest.mark.long),
        ("ema", "32-true", 4, 2),
        pytest.param("batch", "bf16-mixed", 3, 4, marks=pytest.mark.long),
        ("batch", "bf16-mixed", 4, 2),
    ],
)
def test_a_resumed_run_equals_an_uninterrupted_one(
    build, loss_settings, normalizer, precision, stop, least, monkeypatch
):
    """The runs are equal bit for bit, whether stopped within an epoch or after its last step, before validation.

    With ``least`` 2, a batch of 4 images is trained in parts; with 4, whole.
    """
    monkeypatch.setattr(passes, "_LEAST_IMAGES", least)
    loss = replace(loss_settings, normalizer=normalizer)
    whole = build("a", SLIGHT, loss=loss, precision=precision, epochs=3, dropout=0.3)
    steps = []
    whole.fit(silent(steps=steps))

    first = build("b", SLIGHT, loss=loss, precision=precision, epochs=3, dropout=0.3)
    again = []
    with pytest.raises(Killed):
        first.fit(replace(silent(steps=again), stop_requested=lambda: first.step >= stop))
    second = build("b", SLIGHT, loss=loss, precision=precision, epochs=3, dropout=0.3)
    torch.manual_seed(99)
    assert second.resume()
    assert (second.step, second.epoch) == (stop, 0 if stop <= 4 else 1)
    second.fit(silent(steps=again))
    assert [step for step, _ in again] == list(range(12))
    for key in ("train/loss", "train/gradient_norm", "train/lr"):
        assert [metrics[key] for _, metrics in again] == [metrics[key] for _, metrics in steps]
    for name, value in whole.train_step.model.state_dict().items():
        assert torch.equal(value, second.train_step.model.state_dict()[name]), name
    assert whole.best.score == second.best.score == 2
    for name, value in whole.best.weights.items():
        assert torch.equal(value, second.best.weights[name]), name


def test_a_resumed_run_repeats_the_changes_made_on_the_device(build):
    whole, again, plain = [], [], []
    build("a", on_device=SLIGHT, epochs=2).fit(silent(steps=whole))
    first = build("b", on_device=SLIGHT, epochs=2)
    with pytest.raises(Killed):
        first.fit(replace(silent(steps=again), stop_requested=lambda: first.step >= 3))
    second = build("b", on_device=SLIGHT, epochs=2)
    torch.manual_seed(99)
    assert second.resume()
    second.fit(silent(steps=again))
    build("c", epochs=2).fit(silent(steps=plain))
    runs = [[metrics["train/loss"] for _, metrics in steps] for steps in (whole, again, plain)]
    assert runs[0] == runs[1]
    assert all(one != other for one, other in zip(runs[0], runs[2], strict=True))


def test_checkpoints_in_between(build, tmp_path):
    trainer = build(epochs=2, checkpoint_steps=3)
    seen = []
    saved = replace(silent(), before_checkpoint=lambda: seen.append(trainer.step))
    trainer.fit(saved)
    assert seen == [3, 4, 6, 8]
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == [
        "best-0000.json", "best-0000.safetensors", "best-0001.json", "best-0001.safetensors",
        "step-00000006", "step-00000008",
    ]  # fmt: skip


def test_steps_are_reported(build):
    steps = []
    build(batch_size=1, epochs=1).fit(silent(steps=steps))
    assert [step for step, _ in steps] == list(range(16))
    metrics = steps[-1][1]
    assert metrics["train/loss"] == pytest.approx(metrics["train/loss_classification"] + metrics["train/loss_box"])
    assert metrics["train/images_per_second"] > 0
    assert metrics["train/gradient_norm"] > 0


@pytest.mark.skipif(sys.platform != "linux", reason="reads the time of all processes, which other systems may hide")
def test_says_once_that_other_processes_use_the_machine(build, foreign_load, caplog, monkeypatch):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(OtherProcesses, "seconds", 0.0)
    build(batch_size=1, epochs=2).fit(silent())
    assert sum("training is slower while they do" in line for line in caplog.messages) == 1


def test_images_without_any_box_train(build, squares):
    empty = DetectionDataset(squares[0], [np.zeros((0, 4), np.float32)] * 16, None, 0)
    steps = []
    build(data=empty, epochs=1).fit(silent(steps=steps))
    assert all(math.isfinite(metrics["train/loss"]) and metrics["train/loss_box"] == 0 for _, metrics in steps)


def test_the_best_epoch_is_kept(build):
    best = build(epochs=3).fit(silent(lambda epoch: [0.2, 0.7, 0.3][epoch]))
    assert (best.epoch, best.score) == (1, 0.7)


class NotANumber(DetectionLoss):
    """A loss that is not a number in the calls that ``bad`` names."""

    def __init__(self, settings, bad):
        super().__init__(settings)
        self.calls, self.bad = 0, bad

    def forward(self, *inputs):
        found = super().forward(*inputs)
        self.calls += 1
        return found._replace(box=found.box * math.nan) if self.calls - 1 in self.bad else found


def test_a_step_without_a_finite_gradient_is_passed_over(build, loss_settings, caplog):
    trainer = build(epochs=2)
    trainer.train_step.losses.detection = NotANumber(loss_settings, {1, 2, 5})
    steps = []
    trainer.fit(Hooks(lambda metrics, step: steps.append((step, metrics)), lambda found, epoch: epoch))
    assert len(steps) == 8
    assert trainer.guard.skipped == 3
    assert [metrics["train/skipped_steps"] for _, metrics in steps] == [0, 1, 2, 2, 2, 3, 3, 3]
    assert all(torch.isfinite(value).all() for value in trainer.train_step.model.state_dict().values())
    assert "step 1: loss nan" in caplog.text


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_a_skipped_step_changes_nothing(build, loss_settings, optimizer):
    trainer = build(epochs=1, batch_size=16, optimizer=optimizer)
    trainer.train_step.losses.detection = NotANumber(loss_settings, {0})
    before = {name: value.clone() for name, value in trainer.train_step.model.state_dict().items()}
    trainer.fit(silent())
    for name, value in trainer.train_step.model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_the_step_after_a_skipped_first_one_is_as_if_it_were_the_first(build, loss_settings):
    """If the first step is skipped, torch leaves its momentum undefined."""
    runs = []
    for bad in ({0}, set()):
        trainer = build(optimizer="sgd", epochs=1, warmup_epochs=0)
        trainer.train_step.losses.detection = NotANumber(loss_settings, bad)
        trainer.train_step.train()
        batches = next(trainer.batches.groups(0, 0))
        for _ in range(1 + len(bad)):
            trainer.train_step.step(batches, 0.01)
        runs.append(trainer.train_step.model.state_dict())
    for name, value in runs[1].items():
        assert torch.equal(value, runs[0][name]), name


@pytest.mark.long
def test_halves_with_a_scaler(build, tmp_path, monkeypatch):
    """An overflow lowers the scale and changes no weight; the checkpoint contains the scale."""

    def scaled(*_):
        return Fabric(accelerator="cpu", plugins=[MixedPrecision("16-mixed", "cpu", GradScaler("cpu", 2.0**32))])

    monkeypatch.setitem(globals(), "make_fabric", scaled)
    trainer, steps = build(epochs=5, max_bad_steps=20), []
    trainer.fit(silent(steps=steps))
    skipped = int(steps[-1][1]["train/skipped_steps"])
    scale = trainer.train_step.state()["scaler"]["scale"]
    assert scale == 2.0 ** (32 - skipped)
    assert 5 < skipped < 18
    again = build(epochs=5)
    assert again.resume()
    assert again.train_step.state()["scaler"]["scale"] == scale
    assert all(torch.isfinite(value).all() for value in trainer.train_step.model.state_dict().values())
    assert steps[-1][1]["train/loss"] < steps[0][1]["train/loss"]


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["32-true", "tf32", "bf16-mixed", "16-mixed"])
def test_a_step_on_a_gpu_waits_for_nothing(build, monkeypatch, precision):
    monkeypatch.setitem(globals(), "make_fabric", lambda _, precision: device.make_fabric("cuda", precision))
    trainer = build(precision=precision, epochs=1)
    trainer.train_step.train()
    batches = [batch.to(trainer.fabric.device) for batch in next(trainer.batches.groups(0, 0))]
    for _ in range(2):
        values = trainer.train_step.step(batches, 0.001)
    torch.cuda.set_sync_debug_mode("default" if precision == "16-mixed" else "error")  # its scaler reads overflows back
    try:
        values = trainer.train_step.step(batches, 0.001)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert values["train/loss"].isfinite()
    trainer.fit(silent())


def test_too_many_in_a_row_stop_with_their_studies(build, loss_settings, squares):
    data = DetectionDataset(*squares, augmenter=None, seed=0, names=[f"study-{number}" for number in range(16)])
    trainer = build(epochs=1, data=data, max_bad_steps=2)
    trainer.train_step.losses.detection = NotANumber(loss_settings, {1, 2})
    with pytest.raises(
        UserError, match=r"train\.lr = 0\.002: 2 steps in a row .* loss nan, .* studies study-\d+, study"
    ):
        trainer.fit(silent())
    assert trainer.step == 2  # the third step is not counted


def test_the_checkpoint_before_still_finds_its_best(build, tmp_path):
    """If a run dies writing the third epoch's checkpoint and the second is damaged, the first one is used."""
    trainer = build(epochs=3)

    def killed():
        if trainer.epoch == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trainer.fit(replace(silent(), before_checkpoint=killed))
    (tmp_path / "checkpoints/step-00000008/state.pt").write_bytes(b"damaged")
    again = build(epochs=3)
    assert again.resume()
    assert (again.epoch, again.best.epoch) == (1, 0)
    assert again.best.weights


def test_early_stopping(build, caplog):
    scores = [0.2, 0.5, 0.4, 0.3, 0.9]
    with caplog.at_level("INFO"):
        best = build(epochs=5, patience=2).fit(silent(lambda epoch: scores[epoch]))
    assert best.epoch == 1
    assert "no better epoch for 2 epochs" in caplog.text


def test_sgd_is_torchs(build):
    trainer = build(optimizer="sgd", momentum=0.8)
    assert type(trainer.train_step._optimizer.optimizer) is torch.optim.SGD
    assert {group["momentum"] for group in trainer.train_step._optimizer.param_groups} == {0.8}
    before = trainer.train_step.model.class_head.last.weight.clone()
    trainer.fit(silent())
    assert not torch.equal(before, trainer.train_step.model.class_head.last.weight)


class DiesOnce(DetectionDataset):
    """A dataset that kills its loader's worker while it reads an image, until ``times`` files record such kills."""

    def __init__(self, squares, marks, times):
        super().__init__(*squares, augmenter=None, seed=0)
        self.marks, self.times = marks, times

    def __getitem__(self, key):
        done = len(list(self.marks.iterdir()))
        if key == (0, 9) and done < self.times:
            (self.marks / str(done)).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(key)


@pytest.mark.long
def test_a_loader_that_dies_is_started_again_once(build, squares, tmp_path, caplog):
    marks = tmp_path / "marks"
    marks.mkdir()
    steps, plain = [], []
    build("a", data=DiesOnce(squares, marks, 1), epochs=1, workers=1).fit(silent(steps=steps))
    assert "starting it again" in caplog.text
    build("b", epochs=1).fit(silent(steps=plain))
    assert [step for step, _ in steps] == [0, 1, 2, 3]
    assert [metrics["train/loss"] for _, metrics in steps] == [metrics["train/loss"] for _, metrics in plain]
    for mark in marks.iterdir():
        mark.unlink()
    with pytest.raises(UserError, match="train.workers = 1: a data loader's worker died twice"):
        build("c", data=DiesOnce(squares, marks, 2), epochs=1, workers=1).fit(silent())


def test_an_accelerator_that_is_not_there():
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(UserError, match="train.accelerator = 'cuda'"):
        make_fabric("cuda", "32-true")


@pytest.mark.long
@pytest.mark.parametrize("name", ["distance_weighted_bce", "dice", "lovasz_softmax"])
def test_the_extra_heads_learn(build, squares, name):
    images, boxes = squares
    classes = [0 if len(box) else 2 for box in boxes]
    classes[5] = -1  # a study without a class adds nothing to the loss
    data = DetectionDataset(images, boxes, None, 0, classes)
    steps = []
    # The overlap losses alone start on a plateau; with cross-entropy they leave it.
    terms = {name: 1.0} if name.endswith("bce") else {"bce": 1.0, name: 1.0}
    extra = ExtraLosses(MaskSettings(terms, 0.5, 10.0, 5.0), 0.5)
    trainer = build(epochs=12, lr=0.004, data=data, extra=extra)
    trainer.fit(silent(steps=steps))
    for key in ("train/loss_mask", "train/loss_image_class"):
        values = [metrics[key] for _, metrics in steps]
        assert np.mean(values[-4:]) < 0.85 * np.mean(values[:4]), key
    total = steps[0][1]
    parts = [value for key, value in total.items() if key.startswith("train/loss_")]
    assert total["train/loss"] == pytest.approx(sum(parts), rel=1e-5)
    model = trainer.train_step.model.eval()
    batch = torch.from_numpy(np.stack(images[1:3])[:, None])
    assert model(batch).mask is None  # the mask costs nothing unless it is asked for
    drawn = model(batch, with_mask=True).mask
    assert drawn.shape == (2, 16, 16)
    inside = torch.stack(
        [
            drawn[
                row,
                int(box[0][1]) // 8 + 1 : int(box[0][3]) // 8 - 1,
                int(box[0][0]) // 8 + 1 : int(box[0][2]) // 8 - 1,
            ].mean()
            for row, box in enumerate(boxes[1:3])
        ]
    )
    assert (inside > drawn.mean((1, 2))).all()


def test_image_classes_that_are_all_unknown_cost_nothing():
    outputs = HeadOutputs(torch.zeros(2, 1, 1), torch.zeros(2, 1, 4), None, torch.randn(2, 3, requires_grad=True))
    losses = ExtraLosses(MaskSettings({}, 0.5, 10.0, 5.0), 0.5)
    found = losses(outputs, torch.ones(2, 1, 4), torch.full((2, 1), -1), torch.tensor([-1, -1]))
    assert found["image_class"].item() == 0
    mixed = losses(outputs, torch.ones(2, 1, 4), torch.full((2, 1), -1), torch.tensor([-1, 1]))["image_class"]
    wanted = -torch.log_softmax(outputs.image_class[1], 0)[1] / 2
    torch.testing.assert_close(mixed, wanted)


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # the compiler reads the attribute, not our code
def test_a_compiled_run_gives_the_same_losses(build, squares):
    """One graph serves all batches, though their images have 0 to 3 boxes."""
    boxes = [np.resize(one, (number % 4 if len(one) else 0, 4)) for number, one in enumerate(squares[1])]
    data = DetectionDataset(squares[0], boxes, None, 0)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    results = []
    for compiled in (False, True):
        steps = []
        trainer = build(f"compiled-{compiled}", data=data, dropout=0.2, epochs=2, batch_size=2, compile=compiled)
        trainer.fit(silent(steps=steps))
        results.append([(metrics["train/loss"], metrics["train/gradient_norm"]) for _, metrics in steps])
    assert len(results[1]) == 16
    np.testing.assert_allclose(results[1], results[0], rtol=2e-3)
    counters = torch._dynamo.utils.counters
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]


@pytest.mark.parametrize(
    ("form", "change"),
    [
        ("cpu", {}),
        ("gpu", {}),
        ("gpu", {"matching": "atss", "classification": "quality_focal", "box": "giou"}),
        ("gpu", {"sampling": "ohem", "classification": "frequency_balanced_cross_entropy"}),
    ],
    ids=str,
)
def test_forward_and_loss_are_one_graph(architecture, loss_settings, dataset, form, change, monkeypatch):
    """Without graph breaks nothing waits for the device: there is no .item() and no shape that depends on the data."""
    if form == "gpu":  # the functions that tensors on a GPU use
        everything = lambda anchors, *rest: _match_everything(anchors.sides, *rest)  # noqa: E731
        monkeypatch.setattr("pipeline.detection.losses.match_anchors", everything)
        monkeypatch.setattr("pipeline.detection.losses.positive_box_loss", every_box_loss)
    torch._dynamo.reset()
    batch = collate([dataset[0, index] for index in range(4)])
    model = RetinaNet(replace(architecture, mask_head=True, image_classes=3))
    model.dropout = 0.2
    loss = DetectionLoss(replace(loss_settings, normalizer="ema", **change))
    extra = ExtraLosses(MaskSettings({"lovasz_hinge": 1.0, "distance_weighted_bce": 1.0}, 0.5, 10.0, 5.0), 0.5)
    step = NetworkWithLosses(model, StepLosses(loss, extra))
    inputs = (batch.images, model.draw_dropout(batch.images), *step.truth(batch, None))
    # Only on a CPU may a shape depend on the number of positives.
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=form == "cpu"):
        found = torch._dynamo.explain(step)(*inputs)
        assert (found.graph_count, found.graph_break_count) == (1, 0), found.break_reasons
        compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
        loss.running_positives.fill_(100)
        eager = step(*inputs)
        loss.running_positives.fill_(100)
        found = compiled(*inputs)
        torch.testing.assert_close(found, eager, rtol=1e-4, atol=1e-6)
        gradients = [torch.autograd.grad(values[TOTAL], list(model.parameters())) for values in (found, eager)]
        # The order of sums differs, and on one core it differs more than on two.
        torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-4)


def test_compiling_without_a_compiler(build, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=r"train.compile = true: needs the C\+\+ compiler no-such-compiler"):
        build("uncompiled", compile=True)


@pytest.mark.parametrize("normalizer", ["per_image", "batch", "ema"])
def test_accumulated_batches_equal_a_large_one(build, loss_settings, normalizer):
    """Train on 16 images in one step: as 16, as 4 x 4, and as 3 x 6 with a smaller last batch."""
    loss = replace(loss_settings, normalizer=normalizer)
    runs = []
    for batch_size, accumulate in ((16, 1), (4, 4), (8, 2)):
        trainer = build(
            "c", loss=loss, epochs=1, batch_size=batch_size, accumulate=accumulate, optimizer="sgd", clip_norm=1e9
        )
        assert trainer.batches.steps_per_epoch == 1
        steps = []
        trainer.fit(silent(steps=steps))
        runs.append(
            (
                steps[0][1],
                trainer.train_step.model.state_dict(),
                trainer.train_step.losses.detection.running_positives.clone(),
            )
        )
    (whole, weights, running), *others = runs
    for metrics, others_weights, others_running in others:
        for key in ("train/loss", "train/loss_box", "train/positives_per_image", "train/gradient_norm"):
            assert metrics[key] == pytest.approx(whole[key], rel=1e-5)
        for name, value in weights.items():
            torch.testing.assert_close(others_weights[name], value, rtol=1e-6, atol=1e-6)
        assert torch.equal(running, others_running)


def test_each_step_and_process_drops_other_channels(build):
    trainer = build(dropout=0.5)
    model = trainer.train_step.model
    batch = next(iter(trainer.batches.groups(0, 0)))[0].images

    def outputs(epoch, rank):
        torch.manual_seed(_seed_of(3, epoch, rank))
        with torch.no_grad():
            return model(batch, dropout_factors=model.draw_dropout(batch)).logits

    assert torch.equal(outputs(0, 0), outputs(0, 0))
    assert not torch.equal(outputs(0, 0), outputs(1, 0))
    assert not torch.equal(outputs(0, 0), outputs(0, 1))
    with torch.no_grad():
        known = model(batch).logits
    assert not torch.equal(outputs(0, 0), known)
    model.dropout = 0.0
    assert torch.equal(outputs(0, 0), known)


def test_the_loop_seeds_each_step(build, monkeypatch):
    seeds = []
    trainer = build(epochs=1)
    monkeypatch.setattr(torch, "manual_seed", seeds.append)
    trainer.fit(silent())
    assert seeds == [_seed_of(3, step, 0) for step in range(4)]


def test_accumulation_and_resuming(build):
    """37 images would leave a group half full; here, 16 images make groups of 2 x 3: 6, 6 and 4."""
    whole, steps = build("a", epochs=2, batch_size=3, accumulate=2), []
    whole.fit(silent(steps=steps))
    assert whole.batches.steps_per_epoch == 3
    first = build("b", epochs=2, batch_size=3, accumulate=2)
    with pytest.raises(Killed):
        first.fit(replace(silent(), stop_requested=lambda: first.step == 2))
    second, again = build("b", epochs=2, batch_size=3, accumulate=2), []
    assert second.resume()
    second.fit(silent(steps=again))
    assert [metrics["train/loss"] for _, metrics in again] == [metrics["train/loss"] for _, metrics in steps[2:]]


def test_a_profile_of_some_steps(build, tmp_path, monkeypatch):
    monkeypatch.setattr(passes, "_LEAST_IMAGES", 1)  # so that the network runs in other threads
    build(epochs=2, batch_size=2, profile_steps=2).fit(silent())
    folder = tmp_path / "checkpoints/profile"
    assert "convolution" in (folder / "operators.txt").read_text()
    assert "traceEvents" in (folder / "trace.json").read_text()
    build("other", epochs=1).fit(silent())
    assert not (tmp_path / "other/profile").exists()
