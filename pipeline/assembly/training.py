"""Params -> the network, its trainer and its model file."""

import logging
import os
from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from lightning_fabric import Fabric

from pipeline import provenance
from pipeline.assembly.inputs import IMAGE_CLASSES, SplitData
from pipeline.assembly.operating_point import choose_operating_point
from pipeline.assembly.preprocessing import preprocessing_of
from pipeline.data.manifest import MANIFEST
from pipeline.delivery.model_config import (
    CONFIG_FILE,
    FORMAT_VERSION,
    WEIGHTS_FILE,
    ModelConfig,
    one_or_each,
    read_config,
)
from pipeline.delivery.model_file import save_model
from pipeline.detection.anchor_fit import fit_shapes
from pipeline.detection.anchors import shape_grid
from pipeline.detection.augment import Augmenter
from pipeline.detection.augment_on_device import DeviceAugmenter
from pipeline.detection.device import make_fabric, place
from pipeline.detection.extra_losses import ExtraLosses
from pipeline.detection.inference import predict
from pipeline.detection.losses import DetectionLoss
from pipeline.detection.mask_losses import MaskSettings
from pipeline.detection.pretrained import imagenet_file, resolve_backbone, saw_nih
from pipeline.detection.retinanet import RetinaNet
from pipeline.detection.settings import Architecture, NetworkSettings, PostProcessing
from pipeline.detection.weights import start_from
from pipeline.errors import UserError
from pipeline.files import sha256_of
from pipeline.params import PRETRAINED, ModelParams, Params
from pipeline.paths import PREPARED, SPLITS_FILE
from pipeline.training.trainer import Best, Trainer

logger = logging.getLogger(__name__)

# Set where a run without the ImageNet weights is better than none, as in `make demo`.
OPTIONAL_WEIGHTS = "PNEUMOFLOW_WEIGHTS_OPTIONAL"

# The code that decides the outputs of stage `train`; dvc.yaml lists the same paths.
TRAINING_CODE = (
    "pipeline/assembly/inputs.py",
    "pipeline/assembly/operating_point.py",
    "pipeline/assembly/preprocessing.py",
    "pipeline/assembly/training.py",
    "pipeline/assembly/validation.py",
    "pipeline/class_names.py",
    "pipeline/data/classes.py",
    "pipeline/data/geometry.py",
    "pipeline/data/manifest.py",
    "pipeline/data/settings.py",
    "pipeline/data/prepared.py",
    "pipeline/data/prepared_tables.py",
    "pipeline/data/splits.py",
    "pipeline/delivery/model_config.py",
    "pipeline/delivery/model_file.py",
    "pipeline/delivery/seen_patients.py",
    "pipeline/delivery/signature.py",
    "pipeline/detection",
    "pipeline/escaping.py",
    "pipeline/metrics",
    "pipeline/stages/train.py",
    "pipeline/training/batches.py",
    "pipeline/training/checkpoint.py",
    "pipeline/training/network_with_losses.py",
    "pipeline/training/nonfinite.py",
    "pipeline/training/optimizer.py",
    "pipeline/training/passes.py",
    "pipeline/training/settings.py",
    "pipeline/training/train_step.py",
    "pipeline/training/trainer.py",
)


def build_trainer(
    params: Params, fabric: Fabric, architecture: Architecture, train_data: SplitData, val_data: SplitData, folder: Path
) -> Trainer:
    """Assemble a `Trainer` from the params."""
    torch.manual_seed(params.seed)
    section = params.loss
    model = RetinaNet(architecture, params.model.weights, _backbone_file(params.model))
    start_from(model, params.model.weights)
    model.backbone.require_size(params.preprocess.image_size, architecture.in_channels)
    model.backbone.freeze(params.model.frozen_stages)
    model.dropout = params.model.dropout
    on_device = params.augment.on_device
    return Trainer(
        fabric=fabric,
        model=model,
        loss=DetectionLoss(section),
        extra_losses=ExtraLosses(
            MaskSettings(dict(section.mask.items()), section.tversky_beta, section.distance_w0, section.distance_sigma),
            section.image_class,
        ),
        train_data=train_data.dataset(None if on_device else Augmenter(params.augment), params.seed),
        val_data=val_data.dataset(None, params.seed),
        post_processing=post_processing_of(params),
        settings=params.train,
        seed=params.seed,
        checkpoints=folder,
        augment=DeviceAugmenter(params.augment) if on_device else None,
    )


def make_trainer(params: Params, splits: Mapping[str, SplitData], folder: Path) -> Trainer:
    """Assemble a `Trainer` and its device, for a run of one process whose model is not kept."""
    fabric = make_fabric(params.train.accelerator, params.train.precision)
    architecture = architecture_of(params, splits["train"])
    return build_trainer(params, fabric, architecture, splits["train"], splits["val"], folder)


def finish(params: Params, architecture: Architecture, best: Best, val_data: SplitData, models: Path) -> ModelConfig:
    """Choose the operating point on val and write the model."""
    model = RetinaNet(architecture)
    model.load_state_dict(best.weights)
    # float32 as at inference, whatever precision the training had.
    fabric = make_fabric(params.train.accelerator, "32-true", alone=True)
    place(model, fabric.device)
    dataset = val_data.dataset(None, params.seed)
    detect_on_val = partial(predict, fabric, model, dataset, params.train.batch_size)
    point = choose_operating_point(params, detect_on_val, post_processing_of(params), val_data)
    config = ModelConfig(
        format_version=FORMAT_VERSION,
        classes=params.class_names,
        architecture=architecture,
        preprocessing=preprocessing_of(params),
        postprocessing=point.post_processing,
        calibration=one_or_each(point.calibrations),
        operating_threshold=one_or_each(point.thresholds),
        operating_rule=point.rule,
        best_epoch=best.epoch,
        val_map=best.score,
        lateral_views=params.data.lateral == "keep",
        started_from=starting_weights(params),
        pretraining_leak=pretraining_leak(params),
    )
    save_model(models, model, config)
    return config


def architecture_of(params: Params, train_data: SplitData) -> Architecture:
    """Return the ``model`` section, without keys that only matter before training, and the anchors that it asks for."""
    section = params.model
    shapes = shape_grid(section.anchor_scales, section.anchor_ratios)
    if section.anchors == "fit":
        boxes = np.concatenate(train_data.prepared_boxes())
        if not len(boxes):
            raise UserError("model.anchors = 'fit': the train split has no box to fit anchors to; set grid")
        shapes = fit_shapes(boxes, len(shapes), params.seed)
    return Architecture(
        **_shared(NetworkSettings, section),
        backbone=resolve_backbone(section.backbone).architecture,
        norm=norm_of(params),
        anchor_shapes=shapes,
        num_classes=len(params.class_names),
        in_channels=len(params.preprocess.channels),
        mask_head=bool(params.loss.mask),
        image_classes=len(IMAGE_CLASSES) if params.loss.image_class else 0,
    )


def norm_of(params: Params) -> Literal["group", "frozen_batch"]:
    """Return the norm that ``model.norm`` asks for; ``auto``: weights trained with BatchNorm keep it, frozen."""
    section = params.model
    if section.norm != "auto":
        return section.norm
    if section.weights in PRETRAINED:
        return "frozen_batch"
    # The path of a trained model, whose norm is in its model.json.
    folder = Path(section.weights)
    return read_config(folder / CONFIG_FILE).architecture.norm if (folder / CONFIG_FILE).exists() else "group"


def starting_weights(params: Params) -> str:
    """Return which weights training starts from, in words, with the start of their file's SHA-256."""
    section = params.model
    if section.weights == "none":
        return "random weights"
    if section.weights not in PRETRAINED:
        path = Path(section.weights)
        text = f"the trained model {path.name}"
        file: Path | None = path if path.is_file() else path / WEIGHTS_FILE
    else:
        # A folder's name alone: its path is nobody else's business.
        kind, _, place = section.backbone.partition(":")
        text = f"{section.weights} weights of {Path(place).name if kind == 'local-dir' else section.backbone}"
        file = _backbone_file(section)
    return f"{text}, sha256 {sha256_of(file)[:12]}" if file else text


def _backbone_file(section: ModelParams) -> Path | None:
    """Return the file of the backbone's weights; None if there is none, or timm or torchvision fetches it."""
    if section.weights == "imagenet":
        return imagenet_file(section.backbone)
    return resolve_backbone(section.backbone).file if section.weights == "pretrained" else None


def pretraining_leak(params: Params) -> bool:
    """Return whether the starting weights are known to have seen NIH ChestX-ray14, which holds RSNA's images."""
    return params.model.weights == "pretrained" and saw_nih(resolve_backbone(params.model.backbone).trained_on)


def without_unreachable_weights(params: Params) -> Params:
    """Return params without ImageNet weights if they cannot be fetched and `OPTIONAL_WEIGHTS` is set; see Makefile."""
    if params.model.weights != "imagenet" or not os.environ.get(OPTIONAL_WEIGHTS):
        return params
    try:
        imagenet_file(params.model.backbone)
    except UserError as error:
        logger.warning("%s. Training starts from random weights, at twice the learning rate", error)
        # In as many epochs, random weights learn too little to need dropout, and more at twice the rate.
        model = replace(params.model, weights="none", norm="auto", frozen_stages=0, dropout=0.0)
        train = replace(params.train, lr=2 * params.train.lr)
        return params.model_copy(update={"model": model, "train": train})
    return params


def post_processing_of(params: Params) -> PostProcessing:
    """Return the part of the ``evaluate`` section that the detector takes."""
    return PostProcessing(**_shared(PostProcessing, params.evaluate))


def _shared(declared: type, section: object) -> dict[str, Any]:
    """Return the values of a section that the settings class ``declared`` has too."""
    return {field.name: getattr(section, field.name) for field in fields(declared)}


def training_fingerprint(params: Params, fold: int | None = None) -> str:
    """Return the fingerprint of params, fold, data and code; training runs with equal fingerprints are the same."""
    sections = params.model_dump(mode="json", include={"seed", "model", "loss", "augment", "train", "preprocess"})
    sections["classes"] = list(params.class_names)
    sections["preprocess"] = {key: sections["preprocess"][key] for key in ("image_size", "clahe", "channels")}
    # Not the candidates, which are tried once the training has ended.
    sections["evaluate"] = asdict(post_processing_of(params))
    if fold is not None:
        sections["fold"] = fold
    code = provenance.code_files(TRAINING_CODE)
    data = [PREPARED / MANIFEST, SPLITS_FILE]  # the manifest has the digests of all other files
    return provenance.fingerprint(sections, [*code, *data])
