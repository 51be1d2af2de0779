"""Detectors that `benchmarks.accuracy` compares. Each trains for the same seconds and detects on val and test."""

import contextlib
import io
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import timm
import torch
from timm.utils.model import freeze_batch_norm_2d
from torch import Tensor
from torchvision.models.detection import RetinaNet as TorchvisionRetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork, LastLevelP6P7

from pipeline.assembly.inputs import SplitData
from pipeline.assembly.training import finish, make_trainer
from pipeline.assembly.validation import epoch_score, val_metrics
from pipeline.data.geometry import to_original
from pipeline.errors import UserError
from pipeline.metrics.results import ImageResult, image_result
from pipeline.params import Params
from pipeline.stages.evaluate import predict_splits
from pipeline.training.trainer import Hooks

SCORED = ("val", "test")
BATCH_SIZE = 8
# The peer's learning rate; of .0001, .0003 and .001 the best on val.
TORCHVISION_LR = 0.0003


@dataclass(frozen=True)
class Contest:
    """The conditions that are equal for all: data, seconds of training, and a folder to work in."""

    params: Params
    splits: Mapping[str, SplitData]
    seconds: float
    folder: Path


@dataclass(frozen=True)
class Outcome:
    """Detections on val and test in pixels of the originals, and the training's seconds and speed."""

    results: Mapping[str, list[ImageResult]]
    seconds: float
    images_per_second: float
    note: str


def ours(contest: Contest) -> Outcome:
    """Train as stage ``train`` does: the epochs of the params, or as many of them as fit into the seconds."""
    epoch = _seconds_per_epoch(contest)
    epochs = min(contest.params.train.epochs, int(contest.seconds / epoch))
    if not epochs:
        raise UserError(f"--seconds {contest.seconds:g}: an epoch takes {epoch:.0f} s here; give more")
    train = replace(contest.params.train, epochs=epochs, checkpoint_steps=0)
    params = contest.params.model_copy(update={"train": train})
    trainer = make_trainer(params, contest.splits, contest.folder / "checkpoints")
    scores: list[float] = []

    def on_epoch(detections: Any, _: int) -> float:
        scores.append(epoch_score(val_metrics(detections, contest.splits["val"])))
        return scores[-1]

    started = time.perf_counter()
    best = trainer.fit(Hooks(lambda *_: None, on_epoch))
    seconds = time.perf_counter() - started
    models = contest.folder / "models"
    finish(params, trainer.train_step.model.architecture, best, contest.splits["val"], models)
    results = predict_splits(params, models, contest.splits)
    speed = epochs * len(contest.splits["train"].index) / seconds
    return Outcome(results, seconds, speed, f"epochs {epochs}, val mAP " + " ".join(f"{one:.3f}" for one in scores))


def _seconds_per_epoch(contest: Contest) -> float:
    """Train one epoch, with its pass over val and its checkpoint, and forget it."""
    train = replace(contest.params.train, epochs=1, checkpoint_steps=0)
    trainer = make_trainer(contest.params.model_copy(update={"train": train}), contest.splits, contest.folder / "trial")
    started = time.perf_counter()
    trainer.fit(Hooks(lambda *_: None, lambda found, _: epoch_score(val_metrics(found, contest.splits["val"]))))
    return time.perf_counter() - started


def torchvision(contest: Contest) -> Outcome:
    """Train torchvision's RetinaNet in bf16 and channels_last, with AdamW, a cosine, and flips.

    From random weights its backbone is a ResNet-18; from ImageNet weights it is that of the params, with frozen norms.
    """
    torch.manual_seed(contest.params.seed)
    size = contest.params.preprocess.image_size
    backbone: torch.nn.Module
    if contest.params.model.weights == "imagenet":
        backbone = _TimmPyramid(contest.params.model.backbone)
    else:
        backbone = resnet_fpn_backbone(
            backbone_name="resnet18", weights=None, trainable_layers=5, returned_layers=[2, 3, 4],
            norm_layer=torch.nn.BatchNorm2d, extra_blocks=LastLevelP6P7(256, 256),
        )  # fmt: skip
    # Its default anchors are for images of 800 px.
    sizes = tuple((x, x * 2 ** (1 / 3), x * 2 ** (2 / 3)) for x in (32.0, 64.0, 128.0, 256.0, 512.0))
    anchors = AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * len(sizes))
    model = TorchvisionRetinaNet(
        backbone, num_classes=1, anchor_generator=anchors, min_size=size, max_size=size, detections_per_img=100
    ).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), TORCHVISION_LR, weight_decay=0.05)
    model.train()
    images, started, share = 0, time.perf_counter(), 0.0
    batches = _batches(contest)
    while share < 1:
        for group in optimizer.param_groups:
            group["lr"] = TORCHVISION_LR * min(share / 0.03 + 0.01, 0.5 * (1 + math.cos(math.pi * share)))
        pixels, targets = next(batches)
        with torch.autocast("cpu", torch.bfloat16):
            losses = model(pixels, targets)
        sum(losses.values()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        images += len(pixels)
        share = (time.perf_counter() - started) / contest.seconds
    seconds = time.perf_counter() - started
    results = {name: _torchvision_results(model.eval(), contest.splits[name]) for name in SCORED}
    return Outcome(results, seconds, images / seconds, f"epochs {images / len(contest.splits['train'].index):.1f}")


class _TimmPyramid(torch.nn.Module):
    """A timm backbone with ImageNet weights and torchvision's feature pyramid, as `RetinaNet` takes it."""

    out_channels = 256

    def __init__(self, name: str) -> None:
        super().__init__()
        self.body = freeze_batch_norm_2d(timm.create_model(name, pretrained=True, features_only=True))
        features = self.body.feature_info
        self.levels = [features.reduction().index(stride) for stride in (8, 16, 32)]
        channels = [features.channels()[level] for level in self.levels]
        self.fpn = FeaturePyramidNetwork(channels, self.out_channels, LastLevelP6P7(256, 256))

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Return the levels P3 to P7 by name."""
        features = self.body(images)
        named = OrderedDict((str(number), features[level]) for number, level in enumerate(self.levels))
        return dict(self.fpn(named))


def _batches(contest: Contest) -> Iterator[tuple[list[Tensor], list[dict[str, Tensor]]]]:
    """Yield batches of images and targets in torchvision's form, half of the images mirrored, without end."""
    data = contest.splits["train"]
    boxes = data.prepared_boxes()
    rng = np.random.default_rng(contest.params.seed)
    while True:
        order = rng.permutation(len(boxes))
        for start in range(0, len(order) - BATCH_SIZE + 1, BATCH_SIZE):
            pixels, targets = [], []
            for index in order[start : start + BATCH_SIZE]:
                image, own = _as_float(data.images[int(index)]), torch.from_numpy(boxes[int(index)])
                if rng.random() < 0.5:
                    image = image.flip(2)
                    own = torch.stack([image.shape[2] - own[:, 2], own[:, 1], image.shape[2] - own[:, 0], own[:, 3]], 1)
                pixels.append(image)
                targets.append({"boxes": own, "labels": torch.zeros(len(own), dtype=torch.long)})
            yield pixels, targets


def _as_float(image: np.ndarray) -> Tensor:
    return torch.from_numpy(np.atleast_3d(image)[..., 0].copy()).float().div(255).expand(3, -1, -1)


@torch.no_grad()
def _torchvision_results(model: TorchvisionRetinaNet, data: SplitData) -> list[ImageResult]:
    results = []
    for index in range(len(data.index)):
        (found,) = model([_as_float(data.images[index])])
        results.append(_result(data, index, found["boxes"].numpy(), found["scores"].numpy()))
    return results


def _result(data: SplitData, index: int, boxes: np.ndarray, scores: np.ndarray) -> ImageResult:
    height, width = data.index["height"].iloc[index], data.index["width"].iloc[index]
    original = to_original(boxes.astype(np.float64).reshape(-1, 4), height, width, data.image_size)
    return image_result(original, scores, data.boxes[index])


def yolo(contest: Contest) -> Outcome:
    """Train Ultralytics' smallest detector from random weights with its own defaults, where it is installed."""
    try:
        from ultralytics import YOLO, settings
    except ImportError:
        raise UserError("--peers yolo: needs the package ultralytics, which is not a dependency (AGPL)") from None
    settings.update({"sync": False, "mlflow": False})
    root = contest.folder / "yolo"
    for name in ("train", "val"):
        _write_yolo(contest.splits[name], root, name)
    (root / "data.yaml").write_text(f"path: {root}\ntrain: images/train\nval: images/val\nnames: [opacity]\n")
    model = YOLO("yolo11n.yaml")
    started = time.perf_counter()
    size = contest.params.preprocess.image_size
    with contextlib.redirect_stdout(io.StringIO()):
        model.train(
            data=str(root / "data.yaml"), imgsz=size, time=contest.seconds / 3600, device="cpu", workers=0,
            seed=contest.params.seed, project=str(root), verbose=False, plots=False,
        )  # fmt: skip
    seconds = time.perf_counter() - started
    epochs = model.trainer.epoch + 1
    best = YOLO(str(model.trainer.best))
    results: dict[str, list[ImageResult]] = {}
    for name in SCORED:
        data = contest.splits[name]
        results[name] = []
        for index in range(len(data.index)):
            image = cv2.cvtColor(np.ascontiguousarray(np.atleast_3d(data.images[index])[..., 0]), cv2.COLOR_GRAY2BGR)
            (found,) = best.predict(image, imgsz=size, conf=0.001, device="cpu", verbose=False)
            boxes = found.boxes
            results[name].append(_result(data, index, boxes.xyxy.numpy(), boxes.conf.numpy()))
    return Outcome(results, seconds, epochs * len(contest.splits["train"].index) / seconds, f"epochs {epochs}")


def _write_yolo(data: SplitData, root: Path, name: str) -> None:
    for folder in ("images", "labels"):
        (root / folder / name).mkdir(parents=True)
    for index, boxes in enumerate(data.prepared_boxes()):
        image = np.ascontiguousarray(np.atleast_3d(data.images[index])[..., 0])
        cv2.imwrite(str(root / "images" / name / f"{index:05d}.png"), image)
        size, corner = (boxes[:, 2:] - boxes[:, :2]) / data.image_size, boxes[:, :2] / data.image_size
        lines = [
            "0 " + " ".join(f"{value:.6f}" for value in row) for row in np.concatenate([corner + size / 2, size], 1)
        ]
        (root / "labels" / name / f"{index:05d}.txt").write_text("\n".join(lines))


CONTESTANTS: dict[str, Callable[[Contest], Outcome]] = {"ours": ours, "torchvision": torchvision, "yolo": yolo}
