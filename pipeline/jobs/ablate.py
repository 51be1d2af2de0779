"""An ablation of focal loss and CLAHE on your data: the paper's Table 1 a, b and d, and CLAHE on and off."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from pipeline import provenance
from pipeline.assembly.inputs import SplitData, read_inputs
from pipeline.assembly.run_identity import run_tags
from pipeline.assembly.run_log import epoch_hooks, run_of
from pipeline.assembly.training import make_trainer, training_fingerprint
from pipeline.data.manifest import MANIFEST
from pipeline.detection.losses import focal_loss
from pipeline.documents import read_json_object
from pipeline.errors import UserError
from pipeline.files import write_atomic, write_json, write_text
from pipeline.params import Params
from pipeline.paths import PREPARED, SPLITS_FILE
from pipeline.reports.ablation_plot import plot_ablation, plot_loss_curves
from pipeline.stages.preprocess import preprocess
from pipeline.tracking import tracked_run

logger = logging.getLogger(__name__)

TABLES = ("a", "b", "d", "clahe", "matching")
RESULTS = "results.json"
_MEASURED = ("map", "map_50", "rsna_score")


@dataclass(frozen=True)
class Arm:
    """One training run of the comparison.

    Attributes:
        table: table of the paper (a, b, d), or ``clahe`` or ``matching``.
        name: the row's label; it names the setting that is varied.
        changes: params section -> key -> value.
        paper_ap: AP that Lin et al. 2017 measured on COCO; None if they did not.
    """

    table: str
    name: str
    changes: Mapping[str, Mapping[str, Any]]
    paper_ap: float | None

    def params(self, base: Params, epochs: int | None) -> Params:
        """Return the user's params with this arm's changes."""
        values = base.model_dump()
        values["loss"] |= {"classification": "focal", "alpha": 0.25, "gamma": 2.0, "sampling": "all", "matching": "iou"}
        if values["loss"]["normalizer"] == "per_image":
            # Without focusing, the loss of an image without boxes would be a thousand times too large.
            values["loss"]["normalizer"] = "batch"
        for section, changes in self.changes.items():
            values[section] |= changes
        if epochs is not None:
            values["train"]["epochs"] = epochs
        return Params.model_validate(values)


def arms(base: Params) -> list[Arm]:
    """Return every arm of every table, with the paper's figures."""
    alphas = zip((0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 0.999), (0.0, 10.8, 30.2, 31.1, 30.8, 28.7, 25.1), strict=True)
    gammas = (
        (0.0, 0.75, 31.1), (0.1, 0.75, 31.4), (0.2, 0.75, 31.9), (0.5, 0.5, 32.9), (1.0, 0.25, 33.7),
        (2.0, 0.25, 34.0), (5.0, 0.25, 32.2),
    )  # fmt: skip
    balanced = {"classification": "balanced_cross_entropy"}
    ohem = {"classification": "cross_entropy", "sampling": "ohem", "ohem_ratio": 3.0}
    atss = {"matching": "atss"}
    clahe = base.preprocess.clahe.model_dump()
    on = clahe | {"clip_limit": clahe["clip_limit"] or 2.0}
    return [
        *(Arm("a", f"CE, alpha {alpha:g}", {"loss": balanced | {"alpha": alpha}}, paper) for alpha, paper in alphas),
        *(
            Arm("b", f"FL, gamma {gamma:g} (alpha {alpha:g})", {"loss": {"gamma": gamma, "alpha": alpha}}, paper)
            for gamma, alpha, paper in gammas
        ),
        Arm("d", "CE with OHEM 1:3", {"loss": ohem}, 32.8),
        Arm("d", "FL", {}, 36.0),
        Arm("clahe", "without CLAHE", {"preprocess": {"clahe": clahe | {"clip_limit": 0.0}}}, None),
        Arm("clahe", "with CLAHE", {"preprocess": {"clahe": on}}, None),
        Arm("matching", "IoU thresholds, FL", {}, None),
        Arm("matching", "ATSS, FL", {"loss": atss}, None),
        Arm("matching", "IoU thresholds, quality FL", {"loss": {"classification": "quality_focal"}}, None),
        Arm("matching", "ATSS, quality FL", {"loss": atss | {"classification": "quality_focal"}}, None),
        Arm("matching", "ATSS, varifocal", {"loss": atss | {"classification": "varifocal", "alpha": 0.75}}, None),
    ]


def ablate(base: Params, out: Path, tables: Sequence[str], epochs: int | None) -> Path:
    """Train every arm that is not in ``out`` yet, write the table and the plots, and return the table's path.

    Each arm is a child of one MLflow run. Started again with the same params and data, the ablation
    continues where it stopped. Arms are compared on val, because test is for the model chosen in the end.
    """
    chosen = [arm for arm in arms(base) if arm.table in tables]
    results_file = out / RESULTS
    known: dict[str, Any] = read_json_object(results_file) if results_file.exists() else {"arms": {}}
    if not isinstance(known.get("arms"), dict):
        raise UserError(f"{results_file}: has no arms; remove it to start afresh")
    with tracked_run(known.get("run_id"), run_tags(base) | {"mlflow.runName": "ablation"}) as parent:
        known["run_id"] = parent.run_id
        write_json(results_file, known)
        results = []
        for number, arm in enumerate(chosen, start=1):
            params = arm.params(base, epochs)
            key = training_fingerprint(params)
            done = key in known["arms"]
            logger.info("arm %d of %d: %s%s", number, len(chosen), arm.name, ": done before" if done else "")
            if not done:
                splits = _inputs(params, base, out)
                known["arms"][key] = _run_arm(arm, params, splits, out / "checkpoints" / key, parent.run_id)
                write_json(results_file, known)
            results.append(known["arms"][key])
        _write(out, _table(chosen, results))
        for name in ("table.csv", "ablation.png", "loss_curves.png"):
            parent.log_files(out / name)
    return out / "table.csv"


def _inputs(params: Params, base: Params, out: Path) -> dict[str, SplitData]:
    """Read the prepared data of an arm; prepare them anew if its CLAHE differs."""
    clip_limit = params.preprocess.clahe.clip_limit
    prepared = PREPARED
    if clip_limit != base.preprocess.clahe.clip_limit:
        prepared = out / f"prepared-{clip_limit:g}-{_data_version()}"
        if not prepared.exists():
            preprocess(params, prepared, out)
    return read_inputs(params, prepared, SPLITS_FILE)


def _data_version() -> str:
    return provenance.fingerprint({}, [PREPARED / MANIFEST])


def _run_arm(
    arm: Arm, params: Params, splits: Mapping[str, SplitData], folder: Path, parent: str
) -> dict[str, float | str]:
    tags = run_tags(params) | {
        "mlflow.parentRunId": parent,
        "mlflow.runName": f"{arm.table}: {arm.name}",
        "ablation.table": arm.table,
    }
    with run_of(folder, tags) as run:
        run.log_params(params.model_dump(mode="json"))
        trainer = make_trainer(params, splits, folder)
        trainer.resume()

        def note(values: Mapping[str, float], epoch: int) -> None:
            write_json(folder / f"val-{epoch}.json", dict(values))  # read again when all epochs are done

        with run.stopping.deferred():
            best = trainer.fit(epoch_hooks(run, splits["val"], note))
        measured = read_json_object(folder / f"val-{best.epoch}.json")
        return {"run_id": run.run_id, **{name: measured[name] for name in _MEASURED}}


def _table(chosen: Sequence[Arm], results: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {
                "table": arm.table,
                "arm": arm.name,
                **{name: result[name] for name in _MEASURED},
                "paper_ap": arm.paper_ap,
            }
            for arm, result in zip(chosen, results, strict=True)
        ]
    )


def _write(out: Path, table: pd.DataFrame) -> None:
    write_text(out / "table.csv", table.round(4).to_csv(index=False))
    picture, curves = plot_ablation(table), plot_loss_curves(loss_curves())
    write_atomic(out / "ablation.png", lambda path: path.write_bytes(picture))
    write_atomic(out / "loss_curves.png", lambda path: path.write_bytes(curves))


def loss_curves() -> pd.DataFrame:
    """Compute focal loss over p_t for gamma 0 (cross-entropy), .5, 1, 2, 5 (Lin et al. 2017, figure 1) by our code."""
    p_t = np.linspace(0.005, 0.995, 199)
    logits = torch.logit(torch.from_numpy(p_t))
    # An alpha of .5 weights both classes alike. The figure has no alpha, so the loss is doubled.
    losses = {gamma: 2 * focal_loss(logits, torch.ones_like(logits), 0.5, gamma) for gamma in (0.0, 0.5, 1.0, 2.0, 5.0)}
    return pd.DataFrame({"p_t": p_t} | {f"gamma {gamma:g}": loss.numpy() for gamma, loss in losses.items()})
