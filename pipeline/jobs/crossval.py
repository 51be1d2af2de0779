"""Cross-validation: one network for each fold, and one model of them all.

DVC runs each fold and their combination as stages of ``crossval/dvc.yaml``, which this job writes: what is unchanged is
not trained again, and what was trained elsewhere can be pulled. Several processes may work in one folder at once.
"""

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock

from pipeline.assembly.inputs import SplitData, read_inputs
from pipeline.assembly.run_identity import read_run_id, run_tags
from pipeline.assembly.training import training_fingerprint
from pipeline.data.splits import read_folds
from pipeline.delivery.model_config import CONFIG_FILE, SEEN_FILE, WEIGHTS_FILE
from pipeline.delivery.model_file import load_model
from pipeline.documents import read_json_object, read_yaml
from pipeline.dvc.command import read_status, run_dvc
from pipeline.errors import UserError
from pipeline.files import write_json, write_text
from pipeline.folder_lock import STAGE_LOCKS, BusyError, only_one
from pipeline.metrics.bootstrap import Metrics, paired_difference
from pipeline.params import Params
from pipeline.paths import CROSSVAL, HEADLINE, MODELS, OUT_OF_FOLD, PREPARED, REPORTS, RUN_FILE, SPLITS_FILE
from pipeline.stages.evaluate import predict_splits
from pipeline.tracking import parent_run

logger = logging.getLogger(__name__)

PIPELINE = CROSSVAL / "dvc.yaml"
_RETRY_SECONDS = 3.0
_MODEL_FILES = (WEIGHTS_FILE, CONFIG_FILE, SEEN_FILE, RUN_FILE)


@dataclass(frozen=True)
class Trained:
    """Folders of a cross-validation: of its model, of each fold's model, and of the reports about the former."""

    model: Path
    folds: tuple[Path, ...]
    reports: Path


def crossval(params: Params) -> Trained:
    """Train the folds that are not trained yet, and combine them into one model.

    Raises:
        UserError: ``split.folds`` asks for no folds, anchors are to be fitted, or a stage failed; what was trained is
            kept.
    """
    if params.split.folds < 2:
        raise UserError(f"split.folds = {params.split.folds}: a cross-validation needs at least 2; 5 are usual")
    if params.split.leaked:
        raise UserError(f"split.leaked = {params.split.leaked:g}: must be 0 in a cross-validation")
    if params.model.anchors == "fit":
        raise UserError("model.anchors = 'fit': the folds' networks must share their anchors; set grid")
    _in_turn("dvc.yaml:split", is_needed=_split_is_out_of_date)
    folds = read_folds(SPLITS_FILE)
    CROSSVAL.mkdir(exist_ok=True)
    with FileLock(CROSSVAL / ".pipeline.lock"):
        _write_pipeline(params, folds)
    with _parent(params):
        _train_all(folds)
        _in_turn(f"{PIPELINE}:combine")
        _in_turn(f"{PIPELINE}:evaluate")
    return Trained(CROSSVAL / MODELS, tuple(CROSSVAL / f"fold{fold}" for fold in folds), CROSSVAL / REPORTS)


def _write_pipeline(params: Params, folds: Sequence[int]) -> None:
    text = yaml.safe_dump(pipeline_of(folds, params.data.dir), sort_keys=False)
    if not PIPELINE.exists() or PIPELINE.read_text() != text:
        write_text(PIPELINE, text)


def pipeline_of(folds: Sequence[int], raw_data: str) -> dict[str, Any]:
    """Return the contents of ``crossval/dvc.yaml``: a stage for each fold, their combination, and its evaluation.

    They depend on the same code and params as the stages of ``dvc.yaml``.

    Raises:
        UserError: ``dvc.yaml`` has no stage ``train`` or ``evaluate``.
    """
    path = Path("dvc.yaml")
    stages = read_yaml(path).get("stages", {})
    if not isinstance(stages, dict) or not {"train", "evaluate"} <= stages.keys():
        raise UserError(
            f"{path}: needs the stages train and evaluate, on whose dependencies those of the folds are based"
        )
    train, evaluate = stages["train"], stages["evaluate"]
    made: dict[str, Any] = {}
    for fold in folds:
        made[f"fold{fold}"] = {
            "wdir": "..",
            "cmd": f"python -m pipeline.stages.train --fold {fold}",
            "deps": train["deps"],
            "params": train["params"],
            "outs": [str(CROSSVAL / f"fold{fold}" / name) for name in _MODEL_FILES],
        }
    members = [out for fold in folds for out in made[f"fold{fold}"]["outs"] if not out.endswith(RUN_FILE)]
    code = {name for stage in (train, evaluate) for name in stage["deps"] if str(name).startswith("pipeline/")}
    made["combine"] = {
        "wdir": "..",
        "cmd": "python -m pipeline.jobs.combine",
        "deps": [str(PREPARED), str(SPLITS_FILE), *members, *sorted(code), "pipeline/jobs/combine.py"],
        "params": ["seed", "classes", "evaluate", "crossval"],
        "outs": [str(CROSSVAL / MODELS / name) for name in (*_MODEL_FILES, OUT_OF_FOLD)],
    }
    made["evaluate"] = {
        "wdir": "..",
        "cmd": f"python -m pipeline.stages.evaluate --models {CROSSVAL / MODELS} --reports {CROSSVAL / REPORTS}",
        "deps": [*(_own(str(name), raw_data) for name in evaluate["deps"]), str(CROSSVAL / MODELS / OUT_OF_FOLD)],
        "params": evaluate["params"],
        "outs": [_own(name, raw_data) for name in evaluate["outs"]],
        "metrics": [{_own(str(REPORTS / HEADLINE), raw_data): {"cache": False}}],
    }
    return {"stages": made}


def _own(path: str, raw_data: str) -> str:
    """Return the path in the cross-validation's folder if it is one of a model or a report."""
    if path.startswith((f"{MODELS}/", f"{REPORTS}/")):
        return str(CROSSVAL / path)
    return path.replace("${data.dir}", raw_data)


@contextmanager
def _parent(params: Params) -> Iterator[None]:
    """Open the MLflow run that holds the folds' runs and the combined model; all processes share it."""
    file, key = CROSSVAL / RUN_FILE, training_fingerprint(params)
    tags = run_tags(params) | {"mlflow.runName": f"cross-validation, {params.split.folds} folds"}
    with ExitStack() as stack:
        with FileLock(CROSSVAL / ".parent.lock"):
            known = file.exists() and read_json_object(file).get("training") == key
            parent = stack.enter_context(parent_run(read_run_id(file) if known else None, tags))
            write_json(file, {"run_id": parent.run_id, "training": key})
        yield


def _train_all(folds: Sequence[int]) -> None:
    """Train every fold; folds on which another process is at work come last."""
    waiting = list(folds)
    while waiting:
        held = {fold: _try(f"{PIPELINE}:fold{fold}") for fold in waiting}
        waiting = [fold for fold in waiting if held[fold]]
        if len(waiting) == len(held):
            logger.info("waiting: %s", held[waiting[0]])
            time.sleep(_RETRY_SECONDS)


def _in_turn(stage: str, is_needed: Callable[[], bool] = lambda: True) -> None:
    while held := _try(stage, is_needed):
        logger.info("waiting: %s", held)
        time.sleep(_RETRY_SECONDS)


def _split_is_out_of_date() -> bool:
    """Return whether the studies are to be prepared or split.

    `dvc repro` cannot be asked while a fold is in training: it claims all that the stages before a fold write, even if
    they have nothing to do.
    """
    return bool(read_status(["status", "--with-deps", "dvc.yaml:split"]))


def _try(stage: str, is_needed: Callable[[], bool] = lambda: True) -> str:
    """Run one stage, if it is needed and not up to date; return who else is at work on it, or nothing."""
    name = stage.replace("/", " ")
    try:
        with only_one(STAGE_LOCKS / f"{name}.lock", f"run of {stage}"):
            if is_needed():
                # A single stage alone: what comes before it has run, and may be in use by other processes.
                run_dvc(["repro", *(["--single-item"] if stage.startswith(str(PIPELINE)) else []), stage], logger.info)
    except BusyError as error:
        return str(error)
    return ""


def gain(params: Params, trained: Trained) -> str:
    """Return lines that compare the model with the network of the first fold: metrics on test, and seconds per image.

    The first fold's network is what ``split.fold: 0`` would train alone.
    """
    test = {"test": read_inputs(params, fold=read_folds(SPLITS_FILE)[0])["test"]}
    (together, own_seconds), (alone, seconds) = (
        _scored(params, folder, test) for folder in (trained.model, trained.folds[0])
    )
    patients = test["test"].index["groupId"].to_list()
    differences = paired_difference(together, alone, patients, params.evaluate.bootstrap_draws, params.seed)
    names = ("rsna_score", "map", "map_50", "auroc")
    shown = [f"{name} {value:+.3f} ({low:+.3f} to {high:+.3f})" for name in names
             for value, low, high in [differences[name]]]  # fmt: skip
    return (
        f"{len(trained.folds)} networks against one, on {len(patients)} test studies: {', '.join(shown)}\n"
        f"cost: {1000 * own_seconds:.0f} ms per image against {1000 * seconds:.0f} ms"
    )


def _scored(params: Params, folder: Path, test: Mapping[str, SplitData]) -> tuple[Metrics, float]:
    """Return a model's metrics on test, and its seconds per image."""
    started = time.perf_counter()
    results = predict_splits(params, folder, test)["test"]
    seconds = (time.perf_counter() - started) / len(results)
    config = load_model(folder)[1]
    return Metrics(results, config.thresholds, config.calibrations), seconds
