"""Stage ``evaluate``: model and splits -> metrics, predictions, plots, the report; all into the MLflow run."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from pipeline import provenance
from pipeline.data.sample import example_dicom
from pipeline.data.splits import LEAKED
from pipeline.delivery.model_file import ModelConfig, load_model
from pipeline.delivery.predictor import to_original
from pipeline.detection.device import make_fabric
from pipeline.detection.inference import predict
from pipeline.drawing import contact_sheet, data_uri, draw_boxes, encode_jpeg
from pipeline.errors import UserError, run_main
from pipeline.evaluation.curves import CURVES, curve_tables, plot_curve
from pipeline.evaluation.examples import pick_examples
from pipeline.evaluation.report import Picture, render_report
from pipeline.evaluation.results import ImageResult, image_result
from pipeline.evaluation.rsna_score import rsna_scores
from pipeline.evaluation.subgroups import subgroup_table
from pipeline.evaluation.summary import INFLATED, Summary, inflation, summarize
from pipeline.files import directory_atomic, write_json, write_text
from pipeline.params import Params, load_params
from pipeline.stages.inputs import SplitData, read_inputs
from pipeline.stages.run_log import log_datasets, run_tags
from pipeline.stages.train import MODELS, RUN_FILE
from pipeline.submission import read_submission, submission_table
from pipeline.tracking import TrackedRun, log_model, tracked_run

logger = logging.getLogger(__name__)

REPORTS = Path("reports")
DETECTIONS = "detections.csv"
EVALUATED = ("val", "test")
COUNTS = ("images", "patients", "boxes")
EXAMPLES_PER_ROW = 4
PICTURE_SIDE = 420
INTERVALS_SHOWN = ("rsna_score_low", "rsna_score_high", "map_50_low", "map_50_high")


def evaluate(params: Params, models: Path = MODELS, reports: Path = REPORTS) -> None:
    """Score the model on val and test and write everything under ``reports``."""
    splits = read_inputs(params.preprocess)
    with tracked_run(_run_id(models), run_tags(params)) as run:
        run.log_params(params.model_dump(mode="json"))
        found = _through_the_file(predict_splits(params, models, splits), splits, reports / DETECTIONS)
        config = load_model(models)[1]
        metrics = {name: _summarize(params, found[name], splits[name], config) for name in found}
        if LEAKED in metrics:
            metrics[LEAKED] |= inflation(metrics[LEAKED], metrics["val"])
        write_json(reports / "metrics.json", metrics)
        write_text(reports / "predictions.csv", _predictions(found, splits, config))
        subgroups = pd.concat([_subgroups(params, found[name], splits[name], config, name) for name in EVALUATED])
        write_text(reports / "subgroups.csv", subgroups.round(6).to_csv(index=False))
        curves = _write_plots(reports / "plots", {name: found[name] for name in EVALUATED}, splits["test"], config)
        page = render_report(
            metrics, curves, _pictures(found["test"], splits["test"], config), _provenance(run, config)
        )
        write_text(reports / "report.html", page)
        _log(run, params, splits, metrics, models, reports)
    logger.info("%s", format_metrics(metrics))


def predict_splits(params: Params, models: Path, splits: Mapping[str, SplitData]) -> dict[str, list[ImageResult]]:
    """Detections and true boxes of val, test and, where there are any, leaked; in pixels of the originals."""
    model, config = load_model(models)
    fabric = make_fabric(params.train.accelerator, "32-true")
    fabric.to_device(model)
    results = {}
    for name in (name for name in (*EVALUATED, LEAKED) if name in splits):
        data = splits[name]
        found = predict(fabric, model, data.dataset(None, 0), params.train.batch_size, config.postprocessing)
        sizes = zip(data.index["height"], data.index["width"], strict=True)
        results[name] = [
            image_result(
                to_original(one["boxes"].double().numpy(), height, width, data.image_size), one["scores"].numpy(), truth
            )
            for one, truth, (height, width) in zip(found, data.boxes, sizes, strict=True)
        ]
    return results


def _through_the_file(
    found: Mapping[str, list[ImageResult]], splits: Mapping[str, SplitData], path: Path
) -> dict[str, list[ImageResult]]:
    """Write all detections to one file, and go on with what is in it: whoever has the file has the numbers."""
    keys = [key for name in found for key in splits[name].index["patientId"]]
    results = [result for part in found.values() for result in part]
    boxes, scores = [result.boxes for result in results], [result.scores for result in results]
    write_text(path, submission_table(keys, boxes, scores, digits=(6, 3)))
    read = read_submission(path)
    return {
        name: [
            image_result(*read[key], result.truth)
            for key, result in zip(splits[name].index["patientId"], part, strict=True)
        ]
        for name, part in found.items()
    }


def _subgroups(
    params: Params, results: list[ImageResult], data: SplitData, config: ModelConfig, name: str
) -> pd.DataFrame:
    draws, seed = params.evaluate.bootstrap_draws, params.seed
    table = subgroup_table(results, data.index, config.operating_threshold, draws, seed)
    table.insert(0, "split", name)
    return table


def format_metrics(metrics: Mapping[str, Summary]) -> str:
    """The headline numbers as one line per split."""
    lines = []
    for split, summary in metrics.items():
        parts = [
            f"{key} {summary[key]:.3f} ({summary[f'{key}_low']:.3f} to {summary[f'{key}_high']:.3f})"
            for key in ("rsna_score", "map", "map_50", "auroc")
            if summary[key] is not None and summary[f"{key}_low"] is not None
        ]
        lines.append(f"{split}: " + "  ".join(parts))
    if LEAKED in metrics:
        gains = [f"{key} {gain:+.3f}" for key in INFLATED if (gain := metrics[LEAKED][f"{key}_inflation"]) is not None]
        lines.append("a leak would have added: " + "  ".join(gains))
    return "\n".join(lines)


def _run_id(models: Path) -> str:
    path = models / RUN_FILE
    try:
        return str(json.loads(path.read_text())["run_id"])
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; run `dvc repro train` first") from None
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{path}: not a JSON object with a run_id; run `dvc repro train`") from None


def _summarize(params: Params, results: list[ImageResult], data: SplitData, config: ModelConfig) -> Summary:
    groups = data.index["groupId"].to_list()
    return summarize(results, groups, config.operating_threshold, params.evaluate.bootstrap_draws, params.seed)


def _predictions(found: Mapping[str, list[ImageResult]], splits: Mapping[str, SplitData], config: ModelConfig) -> str:
    """Val and test in one file, in the challenge's format, above the operating threshold."""
    results = [result for name in EVALUATED for result in found[name]]
    keys = [key for name in EVALUATED for key in splits[name].index["patientId"]]
    kept = [result.scores > config.operating_threshold for result in results]
    boxes = [result.boxes[keep] for result, keep in zip(results, kept, strict=True)]
    scores = [result.scores[keep] for result, keep in zip(results, kept, strict=True)]
    return submission_table(keys, boxes, scores)


def _write_plots(
    folder: Path, found: Mapping[str, list[ImageResult]], test: SplitData, config: ModelConfig
) -> dict[str, bytes]:
    tables = curve_tables(found)
    pictures = {name: plot_curve(name, table) for name, table in tables.items()}
    with directory_atomic(folder) as target:
        for name in CURVES:
            tables[name].to_csv(target / f"{name}.csv", index=False)
            (target / f"{name}.png").write_bytes(pictures[name])
        rows = pick_examples(found["test"], config.operating_threshold, EXAMPLES_PER_ROW)
        blank = np.zeros((PICTURE_SIDE, PICTURE_SIDE, 3), np.uint8)
        sheet = [_draw(found["test"], test, config, place) for row in rows.values() for place in row] or [blank]
        (target / "examples.jpg").write_bytes(encode_jpeg(contact_sheet(sheet, EXAMPLES_PER_ROW)))
    return pictures


def _draw(results: list[ImageResult], data: SplitData, config: ModelConfig, place: int) -> np.ndarray:
    result, row = results[place], data.index.iloc[place]
    scale = data.image_size / max(row["height"], row["width"])
    kept = result.scores > config.operating_threshold
    return draw_boxes(
        np.atleast_3d(data.images[place])[..., 0],
        result.boxes[kept] * scale,
        result.scores[kept],
        result.truth * scale,
        PICTURE_SIDE,
    )


def _pictures(results: list[ImageResult], data: SplitData, config: ModelConfig) -> dict[str, list[Picture]]:
    scores = rsna_scores(results, config.operating_threshold)
    rows = pick_examples(results, config.operating_threshold, EXAMPLES_PER_ROW)
    return {
        title: [
            Picture(
                data.index["patientId"][place],
                f"RSNA score {scores[place]:.2f}; {data.index['class'][place]}",
                data_uri(_draw(results, data, config, place)),
            )
            for place in places
        ]
        for title, places in rows.items()
    }


def _provenance(run: TrackedRun, config: ModelConfig) -> dict[str, str]:
    hashes = {f"DVC {path}": value for path, value in provenance.input_hashes().items()}
    state = provenance.git_state()
    return {
        "MLflow run": run.run_id,
        "Git commit": state["git_commit"] + (" with changes" if state["git_dirty"] == "true" else ""),
        **hashes,
        "Model": f"{config.architecture.backbone}, {config.preprocessing.image_size} px, epoch {config.best_epoch + 1}",
    }


def _log(
    run: TrackedRun,
    params: Params,
    splits: dict[str, SplitData],
    metrics: Mapping[str, Summary],
    models: Path,
    reports: Path,
) -> None:
    log_datasets(run, params, splits)
    # Each metric is a chart: counts and the intervals of all metrics are left to metrics.json and the report.
    shown = [name for name in metrics["test"] if not name.endswith(("_low", "_high")) and name not in COUNTS]
    shown += INTERVALS_SHOWN
    test = {f"test/{name}": metrics["test"][name] for name in shown}
    if LEAKED in metrics:
        gains = {f"leaked/{key}_inflation": metrics[LEAKED][f"{key}_inflation"] for key in INFLATED}
        run.log_metrics({name: gain for name, gain in gains.items() if gain is not None}, step=params.train.epochs)
    for name in ("metrics.json", "predictions.csv", DETECTIONS, "subgroups.csv", "report.html"):
        run.log_files(reports / name)
    run.log_files(reports / "plots", "plots")
    description = "\n".join(f"- {line}" for line in format_metrics(metrics).splitlines())
    run.describe(f"{description}\n\nThe report and the pictures are among the artifacts.")
    log_model(run.run_id, models, test, params.train.epochs, example_dicom(), description)


def main() -> None:
    """Run the stage on ``params.yaml``."""
    evaluate(load_params())


if __name__ == "__main__":
    run_main(main)
