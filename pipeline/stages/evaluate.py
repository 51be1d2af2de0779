"""Stage ``evaluate``: model and splits -> metrics, predictions, plots and report, all logged to the MLflow run."""

import argparse
import logging
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import pandas as pd

from pipeline.assembly.champion import AgainstChampion, OtherClassesError, champion_to_compare, compare_with_champion
from pipeline.assembly.detections import results_table, with_truth
from pipeline.assembly.inputs import SplitData, out_of_fold, read_inputs
from pipeline.assembly.reference import reference_table
from pipeline.assembly.registration import (
    describe,
    format_metrics,
    log_results,
    model_run_id,
    register_results,
    registered_file,
    with_report,
)
from pipeline.assembly.report_page import report_page
from pipeline.assembly.reporting import compute_curves, training_history, write_plots
from pipeline.assembly.run_identity import run_tags
from pipeline.assembly.run_log import log_datasets
from pipeline.data.geometry import to_original
from pipeline.data.splits import LEAKED, read_folds
from pipeline.delivery.model_config import ModelConfig
from pipeline.delivery.model_file import load_model
from pipeline.detection.device import make_fabric, place
from pipeline.detection.inference import predict
from pipeline.errors import UserError, run_main
from pipeline.escaping import safe_table
from pipeline.evaluation.comparison import Scored
from pipeline.evaluation.subgroups import subgroup_table
from pipeline.evaluation.summary import MAIN_METRICS, Summary, inflation, summarize
from pipeline.files import write_json, write_text
from pipeline.folder_lock import only_run_of
from pipeline.metrics.calibration import calibrated
from pipeline.metrics.results import ImageResult, image_result, keep, reported
from pipeline.params import Params, load_params
from pipeline.paths import (
    DATA_CARD,
    DETECTIONS,
    HEADLINE,
    METRICS,
    MODEL_CARD,
    MODELS,
    OUT_OF_FOLD,
    REFERENCE,
    REGISTERED,
    REPORTS,
    SPLITS_FILE,
)
from pipeline.progress import progress_of
from pipeline.reports.cards import data_card, model_card
from pipeline.reports.evaluation_page import render_report
from pipeline.submission import read_submission
from pipeline.tracking import FINAL, MODEL_NAME, Registered, TrackedRun, tracked_run

logger = logging.getLogger(__name__)

EVALUATED = ("val", "test")


def evaluate(params: Params, models: Path = MODELS, reports: Path = REPORTS) -> None:
    """Score the model on val and test and write everything under ``reports``."""
    splits = _read_splits(params, models)
    with tracked_run(model_run_id(models), run_tags(params)) as run:
        run.log_params(params.model_dump(mode="json"))
        config = load_model(models)[1]
        results = _through_the_file(predict_splits(params, models, splits), splits, reports / DETECTIONS)
        metrics = _metrics(params, results, splits, config)
        write_json(reports / METRICS, metrics)
        write_json(reports / HEADLINE, {key: metrics["test"][key] for key in MAIN_METRICS})
        subgroups = _write_tables(params, results, splits, config, reports)
        champion = champion_to_compare()
        scored = Scored(results["test"], config.thresholds, config.calibrations)
        against = None if champion is None else _comparison(params, splits["test"], scored, champion)
        write_json(reports / "comparison.json", asdict(against) if against else None)
        history = training_history(run, params, len(splits["train"].index))
        curves = compute_curves({name: results[name] for name in EVALUATED}, config)
        write_plots(reports / "plots", results["test"], splits["test"], config, curves, history)
        of_test = subgroups[subgroups["split"] == "test"]
        page = report_page(
            run, params, config, results["test"], splits, metrics, against, of_test, curves, history, reports
        )
        write_text(reports / MODEL_CARD, model_card(page, MODEL_NAME))
        write_text(reports / DATA_CARD, data_card(page))
        write_text(reports / "report.html", render_report(page))
        _log(run, params, splits, metrics, models, reports)
    logger.info("%s", format_metrics(metrics))


def _comparison(params: Params, test: SplitData, scored: Scored, champion: Registered) -> AgainstChampion | None:
    try:
        return compare_with_champion(params, test, scored, champion)
    except OtherClassesError as error:
        logger.warning("no comparison: %s", error)
        return None


def _read_splits(params: Params, models: Path) -> dict[str, SplitData]:
    """Read the splits; for a model of several folds, train and val are all studies of the folds."""
    if not load_model(models)[1].ensemble:
        return read_inputs(params)
    folds = [read_inputs(params, fold=fold) for fold in read_folds(SPLITS_FILE)]
    studies = out_of_fold([parts["val"] for parts in folds])
    return {"train": studies, "val": studies, "test": folds[0]["test"]}


def _metrics(
    params: Params, results_of: Mapping[str, list[ImageResult]], splits: Mapping[str, SplitData], config: ModelConfig
) -> dict[str, Summary]:
    chosen = config.thresholds, params.evaluate.bootstrap_draws, params.seed, config.calibrations
    metrics = {
        name: summarize(results, splits[name].index["groupId"].to_list(), *chosen, config.classes)
        for name, results in results_of.items()
    }
    if LEAKED in metrics:
        metrics[LEAKED] |= inflation(metrics[LEAKED], metrics["val"])
    return metrics


def _write_tables(
    params: Params,
    results: Mapping[str, list[ImageResult]],
    splits: Mapping[str, SplitData],
    config: ModelConfig,
    reports: Path,
) -> pd.DataFrame:
    """Write the predictions, the reference for monitoring, and the subgroups; return the subgroups."""
    write_text(reports / "predictions.csv", _predictions(results, splits, config))
    # Several networks together give other scores than each of them alone on the studies outside its folds.
    name = "test" if config.ensemble else "val"
    reference = reference_table(params, splits[name], results[name], config)
    write_text(reports / REFERENCE, reference.to_csv(index=False))
    subgroups = pd.concat([_subgroups(params, results[name], splits[name], config, name) for name in EVALUATED])
    write_text(reports / "subgroups.csv", safe_table(subgroups.round(6)).to_csv(index=False))
    return subgroups


def predict_splits(params: Params, models: Path, splits: Mapping[str, SplitData]) -> dict[str, list[ImageResult]]:
    """Return detections and true boxes of val, test and, if there are any, leaked; in pixels of the originals.

    A model of several folds has seen the studies of val. Their detections are those that each fold's network made on
    the studies that it was not trained on.
    """
    model, config = load_model(models)
    fabric = make_fabric(params.train.accelerator, "32-true")
    place(model, fabric.device)
    results = {}
    for name in (name for name in (*EVALUATED, LEAKED) if name in splits):
        data = splits[name]
        if name == "val" and config.ensemble:
            results[name] = _from_file(models / OUT_OF_FOLD, data, config)
            continue
        dataset, batch_size = data.dataset(None, 0), params.train.batch_size
        with progress_of(f"Evaluating on {name}", -(-len(dataset) // batch_size)) as step:
            detections = predict(fabric, model, dataset, batch_size, config.postprocessing, step)
        sizes = zip(data.index["height"], data.index["width"], strict=True)
        results[name] = [
            calibrated(
                image_result(
                    to_original(one["boxes"].double().numpy(), height, width, data.image_size),
                    one["scores"].numpy(),
                    truth,
                    one["labels"].numpy(),
                    labels,
                ),
                config.calibrations,
            )
            for one, truth, labels, (height, width) in zip(detections, data.boxes, data.labels, sizes, strict=True)
        ]
    return results


def _from_file(path: Path, data: SplitData, config: ModelConfig) -> list[ImageResult]:
    read = read_submission(path, config.classes)
    studies = data.index["patientId"].to_list()
    for study in studies:
        if study not in read:
            raise UserError(f"{path}: lacks study {study}; `pneumoflow crossval` writes it anew")
    return [with_truth(read[study], *truth) for study, *truth in zip(studies, data.boxes, data.labels, strict=True)]


def _through_the_file(
    results_of: Mapping[str, list[ImageResult]], splits: Mapping[str, SplitData], path: Path
) -> dict[str, list[ImageResult]]:
    """Write all detections to one file and return those read back from it: the file alone gives the same numbers."""
    keys = [key for name in results_of for key in splits[name].index["patientId"]]
    results = [result for part in results_of.values() for result in part]
    classes = splits["test"].classes
    write_text(path, results_table(keys, results, classes, digits=(9, 3)))
    read = read_submission(path, classes)
    return {
        name: [
            with_truth(read[key], result.truth, result.truth_labels)
            for key, result in zip(splits[name].index["patientId"], part, strict=True)
        ]
        for name, part in results_of.items()
    }


def _subgroups(
    params: Params, results: list[ImageResult], data: SplitData, config: ModelConfig, name: str
) -> pd.DataFrame:
    draws, seed = params.evaluate.bootstrap_draws, params.seed
    table = subgroup_table(results, data.index, config.thresholds, draws, seed)
    table.insert(0, "split", name)
    return table


def _predictions(
    results_of: Mapping[str, list[ImageResult]], splits: Mapping[str, SplitData], config: ModelConfig
) -> str:
    """Return the detections of val and test above the operating threshold, as one file in the challenge's format."""
    results = [result for name in EVALUATED for result in results_of[name]]
    keys = [key for name in EVALUATED for key in splits[name].index["patientId"]]
    kept = [keep(result, reported(result, config.thresholds)) for result in results]
    return results_table(keys, kept, config.classes)


def _log(
    run: TrackedRun,
    params: Params,
    splits: dict[str, SplitData],
    metrics: Mapping[str, Summary],
    models: Path,
    reports: Path,
) -> None:
    log_datasets(run, params, splits)
    if LEAKED in metrics:
        gains = {f"leaked/{key}_inflation": metrics[LEAKED][f"{key}_inflation"] for key in MAIN_METRICS}
        run.log_metrics({name: gain for name, gain in gains.items() if gain is not None}, step=FINAL)
    log_results(run, metrics, reports)
    run.log_files(reports / "plots", "plots")
    description = with_report(describe(metrics), run)
    run.describe(description)
    version = register_results(params, models, run.run_id, run.run_id, metrics["test"], description)
    write_json(reports / REGISTERED, registered_file(version))


def main() -> None:
    """Run the stage on ``params.yaml``."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.stages.evaluate", description=__doc__)
    parser.add_argument("--models", type=Path, default=MODELS, help="the model's folder, for `pneumoflow crossval`")
    parser.add_argument("--reports", type=Path, default=REPORTS, help="the folder of its results")
    options = parser.parse_args()
    params = load_params()
    with only_run_of("evaluate" if options.reports == REPORTS else f"evaluate {options.reports.name}"):
        evaluate(params, options.models, options.reports)


if __name__ == "__main__":
    run_main(main)
