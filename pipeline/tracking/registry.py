"""Registration of models in MLflow's registry, and their retrieval from it."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import mlflow
import mlflow.pyfunc
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.models import Model, ModelSignature
from mlflow.types import ColSpec, DataType, Schema
from mlflow.types.schema import Array, Map

from pipeline.errors import UserError
from pipeline.redaction import redact
from pipeline.tracking.asking import MissingError, ask, tell
from pipeline.tracking.datasets import DataVersion
from pipeline.tracking.pages import ABOUT, CHAMPIONS, DECISION, renewed
from pipeline.tracking.place import shown_uri
from pipeline.tracking.run import FINAL
from pipeline.tracking.store import open_client
from pipeline.tracking.versions import CHALLENGER, MODEL_NAME, Identity, Registered, find_version, resolve_version

# Packages that the served model needs; the tracking server's machine has no training environment.
_SERVING_PACKAGES = (
    "imagecodecs", "mlflow", "numpy", "opencv-python-headless", "pandas", "pydantic", "pydicom", "safetensors",
    "simplejpeg", "timm", "torch", "torchvision",
)  # fmt: skip


@dataclass(frozen=True)
class LoggedModel:
    """A model that is to be registered.

    Attributes:
        folder: its files.
        metrics: logged for the run and the model, and linked to the test split of ``data``.
        example: a DICOM file as an example of the model's input; it is stored beside the model.
        description: Markdown, for the registered version.
        data: the data set on which the metrics were measured.
        serving: limits of a server of the model, stored with it as its configuration.
        classes: the names of the classes that it detects.
    """

    folder: Path
    identity: Identity
    metrics: Mapping[str, float | None]
    example: bytes
    description: str
    data: DataVersion
    serving: Mapping[str, object]
    classes: Sequence[str]


def require_registry() -> None:
    """Check that models can be registered here, before hours are spent on one.

    Raises:
        UserError: the store cannot be queried, or does not let this process write.
    """
    client = open_client()

    def call() -> None:
        try:
            client.create_registered_model(MODEL_NAME, description=ABOUT)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            former = client.get_registered_model(MODEL_NAME).description or ""
            client.update_registered_model(MODEL_NAME, renewed(ABOUT, former, CHAMPIONS))

    tell(f"writing the model {MODEL_NAME}", call)


def log_model(run_id: str, model: LoggedModel) -> Registered:
    """Log and register a model as a pyfunc of the run, unless it is registered already.

    Raises:
        UserError: the store cannot be queried, or does not accept the model.
    """
    require_registry()
    version = tell("registering the model", lambda: _find_or_log(run_id, model))
    client, text = open_client(), redact(model.description)

    def describe() -> None:
        former = client.get_model_version(MODEL_NAME, version.version).description or ""
        client.update_model_version(MODEL_NAME, version.version, renewed(text, former, DECISION))

    tell("describing the model", describe)
    tell("naming the challenger", lambda: client.set_registered_model_alias(MODEL_NAME, CHALLENGER, version.version))
    return version


def _find_or_log(run_id: str, model: LoggedModel) -> Registered:
    # After a kill, or a lost answer, the model may be registered already.
    version = find_version(model.identity.weights_sha256, model.identity.results_run, model.identity.package)
    if version is not None:
        if not _known_metrics(model).keys() <= open_client().get_run(run_id).data.metrics.keys():
            _log_metrics(run_id, model, None)
        return version
    code = Path(__file__).resolve().parents[1]
    # Like mlflow.pyfunc.log_model, which takes the run only from `with start_run`; that block would end the run.
    info = Model.log(
        artifact_path=None,
        name="model",
        flavor=mlflow.pyfunc,
        run_id=run_id,
        python_model=str(code / "delivery" / "mlflow_model.py"),
        artifacts={"model": str(model.folder)},
        code_paths=[str(code)],
        signature=_signature(model.classes),
        input_example=pd.DataFrame({"dicom": [base64.b64encode(model.example).decode()]}),
        pip_requirements=_pinned(_SERVING_PACKAGES),
        registered_model_name=MODEL_NAME,
        metadata={"format": "safetensors"},
        model_config=dict(model.serving),
        tags=model.identity.tags(),
    )
    _log_metrics(run_id, model, info.model_id)
    return Registered(str(info.registered_model_version), run_id, model.identity.weights_sha256)


def _known_metrics(model: LoggedModel) -> dict[str, float]:
    return {key: value for key, value in model.metrics.items() if value is not None}


def _log_metrics(run_id: str, model: LoggedModel, model_id: str | None) -> None:
    """Log the metrics for the run and its model; without ``model_id``, for the models that the run has."""
    test = model.data.split("test")
    mlflow.log_metrics(_known_metrics(model), step=FINAL, run_id=run_id, model_id=model_id, dataset=test)


def fetch_model(uri: str, folder: Path) -> Path:
    """Fetch the files of a model into ``folder``; return the folder of its ``model.json``.

    Raises:
        UserError: the model does not exist, cannot be fetched, or is not of this pipeline.
    """
    try:
        fetch = partial(mlflow.artifacts.download_artifacts, uri, dst_path=str(folder))
        local = Path(ask(f"fetching {uri}", fetch))
    except MissingError as error:
        raise UserError(f"{uri}: no such model in {shown_uri()}: {error}") from None
    configurations = sorted(local.rglob("model.json"))
    if not configurations:
        raise UserError(f"{uri}: not a model of this pipeline; it has no model.json")
    return configurations[0].parent


def serving_config(uri: str) -> dict[str, object]:
    """Return the configuration that `log_model` stored with the model; empty for a model that has none.

    Raises:
        UserError: there is no such model.
    """
    open_client()
    resolve_version(uri)
    try:
        flavors = ask(f"reading {uri}", partial(Model.load, uri)).flavors
    except MissingError as error:
        raise UserError(f"{uri}: no such model in {shown_uri()}: {error}") from None
    return dict(flavors.get("python_function", {}).get("config") or {})


def download_artifact(run_id: str, name: str, folder: Path) -> Path:
    """Fetch a file of a run into ``folder``.

    Raises:
        UserError: there is no such run or file, or the store cannot be queried.
    """
    try:
        fetch = partial(open_client().download_artifacts, run_id, name, str(folder))
        return Path(ask(f"fetching {name} of MLflow run {run_id}", fetch))
    except MissingError as error:
        raise UserError(f"{name}: not among the files of MLflow run {run_id}: {error}") from None


def log_artifact(run_id: str, path: Path) -> None:
    """Add a file to a run that has ended.

    Raises:
        UserError: there is no such run, or the store does not accept the file.
    """
    client = open_client()
    tell(f"writing {path.name} of run {run_id}", lambda: client.log_artifact(run_id, str(path)))


def read_tags(run_id: str) -> dict[str, str]:
    """Return the tags of a run.

    Raises:
        UserError: there is no such run, or the store cannot be queried.
    """
    return dict(tell(f"looking for run {run_id}", lambda: open_client().get_run(run_id)).data.tags)


def _signature(classes: Sequence[str]) -> ModelSignature:
    inputs = [
        ColSpec(DataType.string, "dicom", required=False),
        ColSpec(Array(Array(DataType.long)), "image", required=False),
    ]
    outputs = [
        ColSpec(DataType.string, "PredictionString"),
        ColSpec(DataType.double, "image_score"),
        ColSpec(Array(Array(DataType.double)), "boxes"),
        ColSpec(Array(DataType.double), "scores"),
    ]
    if len(classes) > 1:
        outputs += [ColSpec(Array(DataType.string), "classes"), ColSpec(Map(DataType.double), "class_scores")]
    return ModelSignature(Schema(inputs), Schema(outputs))  # type: ignore[arg-type]


def _pinned(packages: tuple[str, ...]) -> list[str]:
    pins = []
    for name in packages:
        try:
            # '2.9.0+cu128' names a build that the package index does not have.
            pins.append(f"{name}=={version(name).split('+')[0]}")
        except PackageNotFoundError:
            continue
    return pins
