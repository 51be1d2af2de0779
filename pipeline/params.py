"""Every value of ``params.yaml``, checked once per process. No pydantic model here has a default."""

from dataclasses import is_dataclass
from pathlib import Path
from typing import Annotated, Literal, Self
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic.dataclasses import dataclass

from pipeline.bounds import CHECKED, Count, Fraction, NotNegative, OpenFraction, Positive, Workers
from pipeline.class_names import ClassName, folded
from pipeline.data.settings import Channel, ClipLimit, EachOnce, ImageSize, Tiles
from pipeline.detection.settings import (
    BACKBONE,
    MAX_SHAPES,
    AnchorRatio,
    AnchorScale,
    AugmentSettings,
    BoxShrink,
    LossSettings,
    NetworkSettings,
    PostProcessing,
    SoftNmsSigma,
)
from pipeline.documents import first_problem, read_yaml
from pipeline.errors import UserError
from pipeline.training.settings import TrainSettings

PARAMS_FILE = Path("params.yaml")


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, **CHECKED)


class DataParams(_Section):
    """The folder of the raw data set, how much of it may be unusable, and what becomes of its images and boxes."""

    dir: str
    max_bad_fraction: Fraction
    study_seconds: Positive
    other_classes: Literal["refuse", "drop"]
    reader_iou: Annotated[float, Field(ge=0, lt=1)]
    lateral: Literal["set_aside", "keep"]


class ClaheParams(_Section):
    """Contrast-limited adaptive histogram equalisation; ``clip_limit`` 0 turns it off."""

    clip_limit: ClipLimit
    tile_grid_size: Annotated[list[Tiles], Field(min_length=2, max_length=2)]


class PreprocessParams(_Section):
    """The conversion of a DICOM file into a uint8 image of one size."""

    image_size: ImageSize
    clahe: ClaheParams
    channels: Annotated[list[Channel], Field(min_length=1), EachOnce]
    shard_size: Count
    executor: Literal["processes", "dask"]
    scheduler: str
    workers: Workers

    @model_validator(mode="after")
    def _dask_has_a_scheduler(self) -> Self:
        if self.executor == "dask" and not self.scheduler:
            raise ValueError("executor dask needs the scheduler's address, such as tcp://10.0.0.5:8786")
        return self


class SplitFractions(_Section):
    """Shares of the studies; they add up to 1."""

    train: OpenFraction
    val: OpenFraction
    test: OpenFraction

    @model_validator(mode="after")
    def _adds_up(self) -> Self:
        shares = (self.train, self.val, self.test)
        if abs(sum(shares) - 1) > 1e-9:
            raise ValueError(f"fractions must add up to 1, these give {sum(shares):g}")
        return self


class SplitParams(_Section):
    """The assignment of studies to train, val and test."""

    fractions: SplitFractions
    folds: Annotated[int, Field(ge=0, le=50)]
    fold: Annotated[int, Field(ge=0)]
    leaked: Annotated[float, Field(ge=0, le=0.5)]
    shared_patients: Literal["refuse", "allow"]

    @model_validator(mode="after")
    def _fold_is_one_of_them(self) -> Self:
        if self.folds and self.shared_patients == "allow":
            raise ValueError("shared_patients allow needs folds 0; folds keep patients whole")
        if self.folds == 1:
            raise ValueError("folds must be 0 (none), or at least 2")
        if self.fold >= max(1, self.folds):
            raise ValueError(f"fold must be below folds, {self.fold} >= {max(1, self.folds)}")
        return self


PRETRAINED = ("imagenet", "pretrained", "coco")


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class ModelParams(NetworkSettings):
    """The RetinaNet: a timm backbone, an FPN and two subnets."""

    backbone: Annotated[str, Field(pattern=rf"^({BACKBONE}|(hf[-_]hub|local-dir):.{{1,300}})$")]
    weights: Annotated[str, Field(min_length=1)]
    norm: Literal["auto", "group", "frozen_batch"]
    frozen_stages: Annotated[int, Field(ge=0, le=6)]
    dropout: Annotated[float, Field(ge=0, le=0.9)]
    anchors: Literal["grid", "fit"]
    anchor_scales: Annotated[list[AnchorScale], Field(min_length=1)]
    anchor_ratios: Annotated[list[AnchorRatio], Field(min_length=1)]

    @model_validator(mode="after")
    def _few_shapes(self) -> Self:
        count = len(self.anchor_scales) * len(self.anchor_ratios)
        if count > MAX_SHAPES:
            raise ValueError(f"anchor_scales times anchor_ratios give {count} anchors per cell, at most {MAX_SHAPES}")
        return self

    @model_validator(mode="after")
    def _norm_fits_weights(self) -> Self:
        if self.weights in PRETRAINED and self.norm == "group":
            raise ValueError(f"weights {self.weights} need norm frozen_batch; they were trained with BatchNorm")
        return self

    @model_validator(mode="after")
    def _frozen_stages_are_trained(self) -> Self:
        if self.frozen_stages and self.weights == "none":
            raise ValueError(
                f"frozen_stages {self.frozen_stages} need weights; set frozen_stages: 0 to train from random ones"
            )
        return self

    @model_validator(mode="after")
    def _address_has_weights(self) -> Self:
        if ":" in self.backbone and self.weights != "pretrained":
            raise ValueError(f"weights {self.weights}: backbone {self.backbone} names its weights; set pretrained")
        return self


MaskLossName = Literal["bce", "distance_weighted_bce", "dice", "tversky", "lovasz_hinge", "lovasz_softmax"]


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class LossParams(LossSettings):
    """Matching of anchors to boxes, the two losses of the detector, and those of the auxiliary heads."""

    mask: dict[MaskLossName, Positive]
    tversky_beta: Fraction
    distance_w0: NotNegative
    distance_sigma: Annotated[float, Field(ge=0.01, le=10_000)]
    image_class: NotNegative

    @field_validator("mask", mode="before")
    @classmethod
    def _as_weights(cls, value: object) -> object:
        if isinstance(value, str):
            return {} if value == "none" else {value: 1.0}
        return value


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class TrainParams(TrainSettings):
    """The training loop, and the processes and devices that it runs on."""

    precision: Literal["32-true", "tf32", "bf16-mixed", "16-mixed"]
    accelerator: Literal["auto", "cpu", "cuda", "mps"]
    devices: Annotated[int, Field(ge=1, le=1024)]
    restarts: Annotated[int, Field(ge=0)]
    checkpoint_store: Annotated[float, Field(ge=0, le=1440)]
    picture_epochs: Annotated[int, Field(ge=0)]


class CandidatesParams(_Section):
    """Values that are tried on val once the model is trained; the best RSNA score wins."""

    nms_thresh: list[OpenFraction]
    soft_nms_sigma: list[SoftNmsSigma]
    box_shrink: list[BoxShrink]


class SensitivityParams(_Section):
    """A promised share of patients with an opacity who get a report; see `pipeline.metrics.risk_control`."""

    sensitivity: OpenFraction
    confidence: OpenFraction | None = None


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class EvaluateParams(PostProcessing):
    """Post-processing, its values that are tried on val, the threshold's rule, and the draws for the intervals."""

    candidates: CandidatesParams
    operating_point: Literal["best_rsna"] | SensitivityParams
    bootstrap_draws: Annotated[int, Field(ge=100, le=100_000)]


class CrossvalParams(_Section):
    """The combination of a cross-validation's networks into one model."""

    fusion: Literal["average", "boxes"]
    fusion_thresh: Annotated[list[OpenFraction], Field(min_length=1)]


class PromoteParams(_Section):
    """Conditions under which a new model takes the champion's place."""

    metric: Literal["rsna_score", "map", "map_50", "auroc", "froc_mean", "average_precision"]
    floor: Annotated[float, Field(ge=0, lt=1)]
    margin: Annotated[float, Field(ge=0, lt=1)]
    subgroups: list[Literal["view", "sex", "age", "class"]]
    subgroup_margin: Annotated[float, Field(ge=0, le=1)]


class MonitorParams(_Section):
    """Conditions under which new studies count as different from those that the champion was validated on."""

    least: Annotated[int, Field(ge=20)]
    last: Annotated[int, Field(ge=20)]
    psi_limit: Positive
    p_limit: OpenFraction
    retrain: bool

    @model_validator(mode="after")
    def _enough(self) -> Self:
        if self.last < self.least:
            raise ValueError(f"last must be at least monitor.least, {self.last} < {self.least}")
        return self


class Range(_Section):
    """Values from ``low`` to ``high``, integers if both are integers; ``log``: drawn on a logarithmic scale."""

    low: Annotated[float, Field(gt=0)] | int
    high: float | int
    log: bool

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.low >= self.high:
            raise ValueError(f"low must be below high, {self.low:g} >= {self.high:g}")
        return self


class Choices(_Section):
    """A list of values, one of which is tried at a time."""

    choices: Annotated[list[str | float | int | bool], Field(min_length=2)]


class SweepParams(_Section):
    """The search space of ``pneumoflow sweep``: keys of this file -> their values."""

    trials: Count
    epochs: Count
    space: Annotated[dict[str, Range | Choices], Field(min_length=1)]

    @field_validator("space")
    @classmethod
    def _of_training(cls, value: dict[str, Range | Choices]) -> dict[str, Range | Choices]:
        for key in value:
            if key.split(".")[0] not in ("model", "loss", "augment", "train") or key == "train.epochs":
                raise ValueError(f"{key}: must be a key of model, loss, augment or train, and not train.epochs")
        return value


class ScheduleParams(_Section):
    """The times at which `python -m flows.serve` runs the training flow."""

    cron: str
    timezone: str

    @field_validator("timezone")
    @classmethod
    def _known_zone(cls, value: str) -> str:
        try:
            ZoneInfo(value)
        except (ZoneInfoNotFoundError, ValueError) as error:
            raise ValueError("must be an IANA time zone such as Europe/Berlin") from error
        return value


class Params(_Section):
    """The whole file: one section per stage and subject."""

    seed: Annotated[int, Field(ge=0, lt=2**31)]
    classes: Annotated[list[ClassName] | dict[ClassName, list[str]], Field(min_length=1, max_length=100)]
    data: DataParams
    preprocess: PreprocessParams
    split: SplitParams
    model: ModelParams
    loss: LossParams
    augment: AugmentSettings
    train: TrainParams
    evaluate: EvaluateParams
    crossval: CrossvalParams
    promote: PromoteParams
    monitor: MonitorParams
    sweep: SweepParams
    schedule: ScheduleParams

    @property
    def class_aliases(self) -> dict[str, list[str]]:
        """Return the classes of boxes, and the further names in the label table that mean each of them."""
        return self.classes if isinstance(self.classes, dict) else {name: [] for name in self.classes}

    @property
    def class_names(self) -> tuple[str, ...]:
        """Return the names of the classes; a box's label is its class's position."""
        return tuple(self.class_aliases)

    @field_validator("classes")
    @classmethod
    def _each_name_once(cls, value: list[str] | dict[str, list[str]]) -> list[str] | dict[str, list[str]]:
        meaning: dict[str, str] = {}
        if len({folded(name) for name in value}) < len(value):
            raise ValueError("each class once, whatever its case and spacing")
        for name, aliases in value.items() if isinstance(value, dict) else {name: [] for name in value}.items():
            for alias in {folded(one): one for one in [name, *aliases]}.values():
                if meaning.setdefault(folded(alias), name) != name:
                    raise ValueError(f"{alias!r} means both {meaning[folded(alias)]!r} and {name!r}")
        return value

    @model_validator(mode="after")
    def _gate_has_a_head(self) -> Self:
        if self.evaluate.score_gate and not self.loss.image_class:
            raise ValueError("evaluate.score_gate = true needs the image-level head: loss.image_class above 0")
        return self

    @model_validator(mode="after")
    def _space_is_here(self) -> Self:
        for key in self.sweep.space:
            value: object = self
            for part in key.split("."):
                value = getattr(value, part, None)
            if value is None or isinstance(value, BaseModel) or is_dataclass(value):
                raise ValueError(f"sweep.space: {key} is no key of this file")
        return self


def load_params(path: Path = PARAMS_FILE) -> Params:
    """Read and check a params file.

    Raises:
        UserError: the file is missing, is not YAML, or a key is unknown, missing, duplicated or out of
            range; one line names the file, the key path, the value and the rule.
    """
    try:
        return Params.model_validate(read_yaml(path))
    except FileNotFoundError:
        raise UserError(
            f"{path}: not found; run from the repository root, or copy profiles/sample.yaml there"
        ) from None
    except ValidationError as error:
        more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
        raise UserError(f"{path}: {first_problem(error)}{more}") from None
