"""Registration of the trained model and its results in MLflow's registry, and the search for their version in it."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline import provenance
from pipeline.assembly.run_identity import data_version, read_run_id, run_tags
from pipeline.data.splits import LEAKED
from pipeline.delivery.model_config import CONFIG_FILE, SEEN_FILE, WEIGHTS_FILE
from pipeline.delivery.serving_limits import ServingLimits
from pipeline.documents import read_json_object
from pipeline.errors import UserError
from pipeline.evaluation.summary import COUNTS, MAIN_METRICS, Summary, point_estimates
from pipeline.files import sha256_of
from pipeline.params import Params
from pipeline.paths import DATA_CARD, DETECTIONS, HEADLINE, METRICS, MODEL_CARD, REFERENCE, REGISTERED, RUN_FILE
from pipeline.sources.sample import example_dicom
from pipeline.tracking import (
    MODEL_NAME,
    Identity,
    LoggedModel,
    Registered,
    TrackedRun,
    find_version,
    log_model,
    shown_uri,
    tracked_run,
)

# Files of the reports that the MLflow run gets; `restore` needs the headline.
RESULT_FILES = (
    METRICS, HEADLINE, "predictions.csv", DETECTIONS, REFERENCE, "subgroups.csv", "report.html", MODEL_CARD, DATA_CARD,
)  # fmt: skip
_SHOWN_DIGITS = 12


class NotRegisteredError(UserError):
    """The store does not have the model that the results belong to."""


def register_results(
    params: Params, models: Path, run_id: str, results_run: str, test: Summary, description: str
) -> Registered:
    """Register the model in ``models`` as a version of run ``run_id``, with its test metrics.

    ``results_run`` is the run that the results name; it is another one if they come from another store.
    """
    # Each metric becomes a chart in MLflow: counts are only in metrics.json, intervals in a table too.
    shown = [name for name in point_estimates(test) if name.split("/")[-1] not in COUNTS]
    model = LoggedModel(
        folder=models,
        identity=Identity(weights_digest(models), _package_digest(models), results_run),
        metrics={f"test/{name}": test[name] for name in shown},
        example=example_dicom(),
        description=description,
        data=data_version(params),
        serving=ServingLimits().model_dump(),
        classes=params.class_names,
    )
    return log_model(run_id, model)


def registered_file(version: Registered) -> dict[str, str]:
    """Return the contents of ``registered.json``: the model that the results belong to."""
    return {
        "model": MODEL_NAME,
        "version": version.version,
        "run_id": version.run_id,
        "weights_sha256": version.weights_sha256,
    }


def own_version(models: Path, reports: Path) -> Registered:
    """Return this store's version of the model in ``models`` that the results in ``reports`` belong to.

    Raises:
        NotRegisteredError: this store does not have it.
        UserError: there are no results, they belong to other weights, or the store cannot be queried.
    """
    file = reports / REGISTERED
    known = _read_registered(file)
    digest = weights_digest(models)
    if known["weights_sha256"] != digest:
        raise UserError(
            f"{file}: the results belong to other weights than {models / WEIGHTS_FILE}; `dvc repro evaluate`"
            " computes their results, `dvc checkout` restores weights and results that belong together"
        )
    version = find_version(digest, known["run_id"])
    if version is None:
        raise NotRegisteredError(
            f"{file}: the results belong to run {known['run_id']} with the weights {digest[:_SHOWN_DIGITS]}, and no"
            f" version in {shown_uri()} has them; `pneumoflow register` registers the model there"
        )
    return version


def register(params: Params, models: Path, reports: Path) -> Registered:
    """Register the model and its results in this store if it lacks them; they may come from another store.

    Raises:
        UserError: there are no results, they belong to other weights, or the store does not take them.
    """
    try:
        return own_version(models, reports)
    except NotRegisteredError:
        results_run = _read_registered(reports / REGISTERED)["run_id"]
    metrics = _read_metrics(reports / METRICS)
    with tracked_run(results_run, run_tags(params)) as run:
        run.log_params(params.model_dump(mode="json"))
        log_results(run, metrics, reports)
        description = with_report(describe(metrics), run)
        return register_results(params, models, run.run_id, results_run, metrics["test"], description)


def log_results(run: TrackedRun, metrics: Mapping[str, Summary], reports: Path) -> None:
    """Log the files of an evaluation, those that are there, and a table of its metrics with their intervals."""
    run.log_table(_with_intervals(metrics), "metrics_with_intervals.json")
    for name in RESULT_FILES:
        if (reports / name).exists():
            run.log_files(reports / name)


def _with_intervals(metrics: Mapping[str, Summary]) -> dict[str, list[object]]:
    """Return the metrics of val and test with their 95 % intervals, as the columns of a table."""
    names = point_estimates(metrics["test"])
    columns: dict[str, list[object]] = {"metric": list(names)}
    for split in (name for name in ("val", "test") if name in metrics):
        for title, end in ((split, ""), (f"{split} low", "_low"), (f"{split} high", "_high")):
            columns[title] = [_rounded(metrics[split].get(f"{name}{end}")) for name in names]
    return columns


def _rounded(value: float | None) -> object:
    return "" if value is None else round(value, 4)


def weights_digest(models: Path) -> str:
    """Return the SHA-256 of a model's weights.

    Raises:
        UserError: there are no weights.
    """
    path = models / WEIGHTS_FILE
    try:
        return sha256_of(path)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; run `dvc repro train`, or `dvc checkout`") from None


def _package_digest(models: Path) -> str:
    """Return the digest of all that is logged: the model's files and the code that serves it."""
    package = Path(__file__).resolve().parent.parent
    code = [path for path in package.rglob("*") if path.suffix in (".py", ".jinja")]
    files = [*code, *(models / name for name in (WEIGHTS_FILE, CONFIG_FILE, SEEN_FILE))]
    return provenance.fingerprint({}, [Path(os.path.relpath(path)) for path in files])


def model_run_id(models: Path) -> str:
    """Return the id of the run that made the model.

    Raises:
        UserError: the file is missing or damaged.
    """
    path = models / RUN_FILE
    try:
        return read_run_id(path)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; run `dvc repro train` first") from None


def _read_registered(file: Path) -> dict[str, str]:
    values = _read_results(file)
    try:
        return {key: str(values[key]) for key in ("version", "run_id", "weights_sha256")}
    except KeyError:
        raise UserError(
            f"{file}: does not name its model (version, run_id, weights_sha256); run `dvc repro evaluate`"
        ) from None


def _read_metrics(file: Path) -> dict[str, Any]:
    metrics = _read_results(file)
    if not isinstance(metrics.get("test"), dict):
        raise UserError(f"{file}: not the metrics of an evaluation; run `dvc repro evaluate`")
    return metrics


def _read_results(file: Path) -> dict[str, Any]:
    try:
        return read_json_object(file)
    except FileNotFoundError:
        raise UserError(f"{file}: no such file; run `dvc repro evaluate` first") from None


def describe(metrics: Mapping[str, Summary]) -> str:
    """Return the headline numbers as a Markdown list."""
    return "\n".join(f"- {line}" for line in format_metrics(metrics).splitlines())


def with_report(description: str, run: TrackedRun) -> str:
    """Return a description with a link to the report among the run's files."""
    return f"{description}\n\n[The report]({run.page('report.html')}) shows all results."


def format_metrics(metrics: Mapping[str, Summary]) -> str:
    """Return the headline numbers as one line per split."""
    lines = []
    for split, summary in metrics.items():
        parts = [
            f"{key} {summary[key]:.3f} ({summary[f'{key}_low']:.3f} to {summary[f'{key}_high']:.3f})"
            for key in MAIN_METRICS
            if summary[key] is not None and summary[f"{key}_low"] is not None
        ]
        lines.append(f"{split}: " + "  ".join(parts))
    if LEAKED in metrics:
        gains = [
            f"{key} {gain:+.3f}" for key in MAIN_METRICS if (gain := metrics[LEAKED][f"{key}_inflation"]) is not None
        ]
        lines.append("a leak would have added: " + "  ".join(gains))
    return "\n".join(lines)
